"""`ChatInput` to OpenAI's parameters and its chunks to deltas, field by field."""

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from penstock.core.catalogue import PaidModel
from penstock.router.backends import openai_wire as wire
from penstock.router.backends.openai_usage import UsageTally
from penstock.type.v1 import chat_pb2 as pb
from support.chat import catalogue, chat
from support.fake_upstream import piece, usage

MODEL = catalogue().providers["acme"].models["large"]


def params(asked: pb.ChatInput, model: PaidModel = MODEL) -> dict[str, Any]:
    return wire.params_of(asked, "large", model)


def chunk(body: dict[str, Any]) -> ChatCompletionChunk:
    # As the SDK makes them: without validation.
    return ChatCompletionChunk.construct(None, **body)


def test_a_plain_chat_is_streamed_with_usage_and_its_bound() -> None:
    assert params(chat("hi", max_tokens=9)) == {
        "model": "large",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "hi"}],
        "max_completion_tokens": 9,
    }


def test_name_and_token_field_are_the_models_own() -> None:
    other = MODEL.model_copy(
        update={"upstream_name": "acme-large-1", "max_tokens_field": "max_tokens"}
    )
    made = params(chat(max_tokens=9), other)
    assert made["model"] == "acme-large-1"
    assert made["max_tokens"] == 9
    assert "max_completion_tokens" not in made


def test_sampling_goes_as_it_is_and_zero_is_a_value() -> None:
    made = params(
        chat(
            max_tokens=9, n=2, stop=["a", "b"], logprobs=True, top_logprobs=0, seed=0,
            temperature=0.0, top_p=0.5, presence_penalty=-1.0, frequency_penalty=0.0,
            logit_bias={7: -100.0}, reasoning_effort="low",
        )
    )  # fmt: skip
    wanted = {
        "n": 2, "stop": ["a", "b"], "logprobs": True, "top_logprobs": 0, "seed": 0,
        "temperature": 0.0, "top_p": 0.5, "presence_penalty": -1.0, "frequency_penalty": 0.0,
        "logit_bias": {"7": -100.0}, "reasoning_effort": "low",
    }  # fmt: skip
    assert {key: made[key] for key in wanted} == wanted


def test_messages_of_every_role_and_part() -> None:
    image = pb.ImageUrl(url="https://example.com/a.png", detail="low")
    made = params(
        pb.ChatInput(
            messages=[
                pb.Message(role=pb.ROLE_SYSTEM, content=[pb.ContentPart(text="s")]),
                pb.Message(role=pb.ROLE_DEVELOPER, content=[pb.ContentPart(text="d")], name="dev"),
                pb.Message(
                    role=pb.ROLE_USER,
                    content=[pb.ContentPart(text="look"), pb.ContentPart(image_url=image)],
                ),
                pb.Message(role=pb.ROLE_ASSISTANT, content=[pb.ContentPart(refusal="no")]),
                pb.Message(
                    role=pb.ROLE_ASSISTANT,
                    tool_calls=[pb.ToolCall(id="t1", name="f", arguments_json='{"a":1}')],
                ),
                pb.Message(
                    role=pb.ROLE_TOOL, tool_call_id="t1", content=[pb.ContentPart(text="42")]
                ),
            ]
        )
    )
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    told = {"url": "https://example.com/a.png", "detail": "low"}
    assert made["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": "d", "name": "dev"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": told}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "t1"},
    ]


def test_tools_and_the_choice_among_them() -> None:
    tool = pb.Tool(name="f", description="d", parameters_json='{"type":"object"}', strict=True)
    asked = chat(tools=[tool, pb.Tool(name="g")], parallel_tool_calls=False)
    asked.tool_choice.function_name = "g"
    made = params(asked)
    full = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    assert made["tools"] == [
        {"type": "function", "function": full},
        {"type": "function", "function": {"name": "g"}},
    ]
    assert made["tool_choice"] == {"type": "function", "function": {"name": "g"}}
    assert made["parallel_tool_calls"] is False
    asked.tool_choice.mode = pb.ToolChoice.MODE_REQUIRED
    assert params(asked)["tool_choice"] == "required"


def test_response_formats() -> None:
    kinds = pb.ResponseFormat
    schema = kinds(
        kind=kinds.KIND_JSON_SCHEMA, schema_name="s", schema_description="d",
        schema_json='{"type":"object"}', strict=False,
    )  # fmt: skip
    text = params(chat(response_format=kinds(kind=kinds.KIND_TEXT)))
    plain = params(chat(response_format=kinds(kind=kinds.KIND_JSON_OBJECT)))
    assert text["response_format"] == {"type": "text"}
    assert plain["response_format"] == {"type": "json_object"}
    assert params(chat(response_format=schema))["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "s",
            "schema": {"type": "object"},
            "description": "d",
            "strict": False,
        },
    }


def test_a_raw_prompt_goes_to_the_old_api() -> None:
    asked = pb.ChatInput(prompt="once", max_tokens=5, logprobs=True, top_logprobs=2, n=2)
    assert params(asked) == {
        "model": "large",
        "stream": True,
        "stream_options": {"include_usage": True},
        "prompt": "once",
        "max_tokens": 5,
        "logprobs": 2,
        "n": 2,
    }


def test_deltas_of_text_refusal_and_finish() -> None:
    assert wire.deltas_of(chunk(piece(role="assistant", content=""))) == []
    assert wire.deltas_of(chunk(piece("hi", index=1))) == [pb.ChoiceDelta(index=1, content="hi")]
    assert wire.deltas_of(chunk(piece(refusal="no"))) == [pb.ChoiceDelta(refusal="no")]
    assert wire.deltas_of(chunk(usage())) == []


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("stop", pb.FINISH_REASON_STOP),
        ("length", pb.FINISH_REASON_LENGTH),
        ("tool_calls", pb.FINISH_REASON_TOOL_CALLS),
        ("content_filter", pb.FINISH_REASON_CONTENT_FILTER),
        ("eos", pb.FINISH_REASON_STOP),
    ],
)
def test_finish_reasons(told: str, meant: pb.FinishReason) -> None:
    assert wire.deltas_of(chunk(piece(finish=told))) == [pb.ChoiceDelta(finish_reason=meant)]


def test_a_chunk_without_finish_reason_is_taken() -> None:
    body = piece("hi")
    del body["choices"][0]["finish_reason"]
    assert wire.deltas_of(chunk(body)) == [pb.ChoiceDelta(content="hi")]


def test_deltas_of_tool_calls() -> None:
    first = {"index": 1, "id": "t1", "type": "function", "function": {"name": "f"}}
    more = {"index": 1, "function": {"arguments": '{"a'}}
    assert wire.deltas_of(chunk(piece(tool_calls=[first]))) == [
        pb.ChoiceDelta(tool_calls=[pb.ToolCallDelta(index=1, id="t1", name="f")])
    ]
    assert wire.deltas_of(chunk(piece(tool_calls=[more]))) == [
        pb.ChoiceDelta(tool_calls=[pb.ToolCallDelta(index=1, arguments_json='{"a')])
    ]


def test_logprobs_keep_the_bytes_of_half_a_character() -> None:
    body = piece("")
    top = {"token": "b", "logprob": -2.0, "bytes": None}
    token = {"token": "\ufffd", "logprob": -0.5, "bytes": [226, 130], "top_logprobs": [top]}
    body["choices"][0]["logprobs"] = {"content": [token], "refusal": None}
    assert wire.deltas_of(chunk(body)) == [
        pb.ChoiceDelta(
            logprobs=[
                pb.TokenLogprob(
                    token="\ufffd",
                    logprob=-0.5,
                    token_bytes=b"\xe2\x82",
                    top_logprobs=[pb.TopLogprob(token="b", logprob=-2.0, token_bytes=b"b")],
                )
            ]
        )
    ]


def test_the_old_apis_text_and_logprobs() -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}]}
    choice = {"index": 0, "text": "a", "finish_reason": None, "logprobs": logprobs}
    made = wire.deltas_of(Completion.construct(None, choices=[choice]))
    token = pb.TokenLogprob(
        token="a",
        logprob=-1.0,
        token_bytes=b"a",
        top_logprobs=[pb.TopLogprob(token="a", logprob=-1.0, token_bytes=b"a")],
    )
    assert made == [pb.ChoiceDelta(content="a", logprobs=[token])]


@pytest.mark.parametrize(
    "body",
    [
        {"choices": 5},
        {"choices": ["text"]},
        {"choices": [{"index": "x", "delta": {"content": "hi"}}]},
        {"choices": [{"index": 0, "delta": {"content": {"a": 1}}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": 7}]}}]},
    ],
)
def test_a_chunk_of_a_wrong_shape_is_malformed(body: dict[str, Any]) -> None:
    with pytest.raises(wire.MALFORMED):
        wire.deltas_of(chunk(body))


def total(choices: int, *bodies: dict[str, Any]) -> pb.Usage | None:
    tally = UsageTally(choices)
    for body in bodies:
        tally.add(chunk(body))
    return tally.total()


def test_usage_with_details() -> None:
    told = usage(
        20, 9,
        prompt_tokens_details={"cached_tokens": 16},
        completion_tokens_details={"reasoning_tokens": 5},
    )  # fmt: skip
    assert total(1, piece("hi"), told) == pb.Usage(
        prompt_tokens=20, cached_prompt_tokens=16, completion_tokens=9, reasoning_tokens=5
    )


def test_no_report_is_no_usage() -> None:
    assert total(1, piece("hi"), piece(finish="stop")) is None


def test_openai_counts_all_choices_at_once() -> None:
    assert total(3, usage(20, 24)) == pb.Usage(prompt_tokens=20, completion_tokens=24)


def test_llama_cpp_counts_each_choice_by_itself() -> None:
    first = usage(20, 8, prompt_tokens_details={"cached_tokens": 0})
    other = usage(20, 8, prompt_tokens_details={"cached_tokens": 19})
    assert total(3, first, other, other) == pb.Usage(prompt_tokens=20, completion_tokens=24)


def test_llama_cpp_counts_a_raw_prompts_choices_beside_their_ends() -> None:
    bodies = [piece(index=i, finish="length") | {"usage": usage(5, 2)["usage"]} for i in range(3)]
    assert total(3, *bodies) == pb.Usage(prompt_tokens=5, completion_tokens=6)


def test_a_running_total_is_not_added_up() -> None:
    bodies = [piece("a") | {"usage": usage(5, i)["usage"]} for i in (1, 2, 3)]
    assert total(1, *bodies, usage(5, 3)) == pb.Usage(prompt_tokens=5, completion_tokens=3)
    assert total(1, *bodies) == pb.Usage(prompt_tokens=5, completion_tokens=3)


@pytest.mark.parametrize("told", [usage(-1, 3), usage("many", 3), {"usage": 7, "choices": []}])
def test_a_report_that_cannot_be_is_malformed(told: dict[str, Any]) -> None:
    with pytest.raises(wire.MALFORMED):
        total(1, told)
