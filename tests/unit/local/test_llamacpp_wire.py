import json

import pytest

from penstock.core.errors import CapacityExhausted, Internal, InvalidRequest, PenstockError
from penstock.local.engines.llamacpp_wire import (
    SEED_MASK,
    WHOLE_CHARACTERS,
    body_of,
    error_of,
)
from penstock.type.v1 import chat_pb2


def chat(**fields: object) -> chat_pb2.ChatInput:
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="Hi")])
    return chat_pb2.ChatInput(messages=[message], **{"max_tokens": 9, **fields})


def test_only_what_the_caller_set_is_sent() -> None:
    body = body_of(chat())
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body["max_tokens"], body["n"], body["stream"]) == (9, 1, True)
    for absent in ("temperature", "seed", "stop", "tools", "logprobs", "response_format"):
        assert absent not in body


def test_every_field_reaches_the_engine() -> None:
    schema = {"type": "object"}
    body = body_of(
        chat(
            temperature=0.0,
            top_p=0.5,
            presence_penalty=1.5,
            frequency_penalty=-1.0,
            n=3,
            logprobs=True,
            top_logprobs=4,
            tools=[chat_pb2.Tool(name="f", parameters_json=json.dumps(schema))],
            tool_choice=chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_REQUIRED),
            parallel_tool_calls=False,
            response_format=chat_pb2.ResponseFormat(
                kind=chat_pb2.ResponseFormat.KIND_JSON_SCHEMA, schema_json=json.dumps(schema)
            ),
        )
    )
    expected = {
        "temperature": 0.0,
        "top_p": 0.5,
        "presence_penalty": 1.5,
        "frequency_penalty": -1.0,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 4,
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    assert expected == {k: body[k] for k in expected}
    assert body["tools"][0]["function"]["parameters"] == schema
    assert body["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**62, 0])
def test_every_seed_is_one_that_repeats(seed: int) -> None:
    assert 0 <= body_of(chat(seed=seed))["seed"] <= SEED_MASK


def test_a_free_text_is_made_of_whole_characters() -> None:
    assert body_of(chat(logit_bias={5: -100.0}))["logit_bias"] == {"5": -100.0}
    raw = chat_pb2.ChatInput(prompt="Hi", max_tokens=1)
    assert [body_of(c)["grammar"] for c in (chat(), raw)] == [WHOLE_CHARACTERS] * 2


@pytest.mark.parametrize(
    "formed",
    [
        {"tools": [chat_pb2.Tool(name="f")]},
        {"response_format": chat_pb2.ResponseFormat(kind=chat_pb2.ResponseFormat.KIND_JSON_OBJECT)},
    ],
    ids=["tools", "response format"],
)
def test_a_bias_is_refused_where_the_text_has_a_form(formed: dict[str, object]) -> None:
    assert "grammar" not in body_of(chat(**formed))
    with pytest.raises(InvalidRequest) as caught:
        body_of(chat(logit_bias={5: -100.0}, **formed))
    assert caught.value.violations[0].field == "input.logit_bias"


def test_stop_sequences_stay_here() -> None:
    assert "stop" not in body_of(chat(stop=["a"]))


@pytest.mark.parametrize(("top", "asked"), [(0, 1), (1, 1), (5, 5)])
def test_logprobs_are_asked_for_with_one_alternative_at_least(top: int, asked: int) -> None:
    wanted = {"logprobs": True, "top_logprobs": top}
    assert body_of(chat(**wanted))["top_logprobs"] == asked
    raw = chat_pb2.ChatInput(prompt="Hi", max_tokens=1, **wanted)
    assert body_of(raw)["logprobs"] == asked


def test_a_named_function_is_the_only_one_and_required() -> None:
    tools = [chat_pb2.Tool(name="f"), chat_pb2.Tool(name="g")]
    body = body_of(chat(tools=tools, tool_choice=chat_pb2.ToolChoice(function_name="g")))
    assert [t["function"]["name"] for t in body["tools"]] == ["g"]
    assert body["tool_choice"] == "required"


def test_parts_follow_one_another_and_a_developer_is_a_system() -> None:
    given = chat()
    given.messages[0].role = chat_pb2.ROLE_DEVELOPER
    given.messages[0].content.add(text=" there")
    assert body_of(given)["messages"] == [{"role": "system", "content": "Hi there"}]


def test_what_it_cannot_honour_it_refuses() -> None:
    with pytest.raises(InvalidRequest, match="reasoning_effort"):
        body_of(chat(reasoning_effort="high"))
    with pytest.raises(InvalidRequest, match=r"input\.tools\[0\]\.parameters_json"):
        body_of(chat(tools=[chat_pb2.Tool(name="f", parameters_json="[1]")]))
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.role"):
        body_of(chat_pb2.ChatInput(messages=[chat_pb2.Message()], max_tokens=1))


@pytest.mark.parametrize(
    ("code", "kind"),
    [(400, InvalidRequest), (503, CapacityExhausted), (429, CapacityExhausted), (500, Internal)],
)
def test_an_error_is_blamed_on_whose_it_is(code: int, kind: type[PenstockError]) -> None:
    assert type(error_of({"code": code, "message": "why"}, chat())) is kind
