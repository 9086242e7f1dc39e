import json

import pytest

from penstock.core.errors import CapacityExhausted, Internal, InvalidRequest, PenstockError
from penstock.local.engines.llamacpp_wire import SEED_MASK, Tally, body_of, choice_delta, error_of
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
            stop=["a", "b"],
            logprobs=True,
            top_logprobs=4,
            logit_bias={5: -100.0},
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
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 4,
        "logit_bias": {"5": -100.0},
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    assert expected == {k: body[k] for k in expected}
    assert body["tools"][0]["function"]["parameters"] == schema
    assert body["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**62, 0])
def test_every_seed_is_one_that_repeats(seed: int) -> None:
    assert 0 <= body_of(chat(seed=seed))["seed"] <= SEED_MASK


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


def _end(completion_tokens: int, cached_tokens: int) -> dict[str, object]:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    return {"choices": [], "usage": usage, "timings": {"predicted_per_second": 50.0}}


def test_usage_sums_the_choices_and_counts_the_prompt_once() -> None:
    tally = Tally(2)
    tally.add({"choices": [{"index": 0}], "prompt_progress": {"total": 10, "processed": 4}})
    assert (tally.prompt_tokens, tally.completion_tokens) == (10, 0)
    tally.add({"choices": [{"index": 0}], "timings": {"predicted_n": 3}})
    tally.add({"choices": [{"index": 1}], "timings": {"predicted_n": 2}})
    assert tally.completion_tokens == 5
    tally.add(_end(3, cached_tokens=2))
    assert not tally.complete
    tally.add(_end(4, cached_tokens=9))
    assert tally.complete
    assert tally.usage() == chat_pb2.Usage(
        prompt_tokens=10, completion_tokens=7, cached_prompt_tokens=2
    )


def test_a_tool_call_piece_is_carried_over() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}
    delta = choice_delta({"index": 1, "delta": {"tool_calls": [call]}, "finish_reason": None})
    assert delta == chat_pb2.ChoiceDelta(
        index=1,
        tool_calls=[chat_pb2.ToolCallDelta(index=0, id="c", name="f", arguments_json='{"a"')],
    )


@pytest.mark.parametrize(
    ("code", "kind"),
    [(400, InvalidRequest), (503, CapacityExhausted), (429, CapacityExhausted), (500, Internal)],
)
def test_an_error_is_blamed_on_whose_it_is(code: int, kind: type[PenstockError]) -> None:
    assert type(error_of({"code": code, "message": "why"}, field="input.prompt")) is kind


def test_a_chunk_without_content_is_nothing() -> None:
    assert choice_delta({"index": 0, "delta": {"role": "assistant", "content": None}}) is None
