"""llama.cpp's chunks, as its server sends them, to deltas."""

from typing import Any

import pytest

from penstock.core.errors import InvalidRequest
from penstock.local.engines.llamacpp_output import Tally
from penstock.type.v1 import chat_pb2

Json = dict[str, Any]


def tally(**fields: Any) -> Tally:
    return Tally(chat_pb2.ChatInput(max_tokens=9, **fields))


def timings(made: int) -> Json:
    return {"predicted_n": made, "predicted_per_second": 50.0}


def progress(processed: int, *, cache: int = 0) -> Json:
    role = {"role": "assistant", "content": None}
    return {
        "choices": [{"index": 0, "finish_reason": None, "delta": role}],
        "prompt_progress": {"total": 10, "processed": processed, "cache": cache},
        "timings": timings(0),
    }


def piece(text: str, made: int, index: int = 0, **choice: Any) -> Json:
    delta = {"content": text}
    return {
        "choices": [{"index": index, "finish_reason": None, "delta": delta, **choice}],
        "timings": timings(made),
    }


def end(index: int, reason: str = "stop") -> Json:
    return {"choices": [{"index": index, "finish_reason": reason, "delta": {}}]}


def usage(made: int) -> Json:
    return {"choices": [], "usage": {"completion_tokens": made}, "timings": timings(made)}


def choices_of(reading: Tally, chunk: Json) -> tuple[chat_pb2.ChoiceDelta, ...]:
    delta = reading.add(chunk)
    assert delta is not None
    return delta.choices


def test_the_prompt_is_read_when_its_progress_is_whole() -> None:
    reading = tally()
    first = reading.add(progress(4))
    assert first is not None
    assert (first.prompt_tokens, first.completion_tokens, first.choices) == (10, 0, ())
    assert not reading.is_prompt_read
    assert reading.add(progress(10)) is None
    assert reading.is_prompt_read


def test_usage_sums_the_choices_and_counts_the_prompt_once() -> None:
    two = tally(n=2)
    two.add(progress(10, cache=2))
    two.add(piece("a", 2))
    delta = two.add(piece("b", 2, index=1))
    assert delta is not None
    assert delta.completion_tokens == 4
    # The token that ends a text is told of in the usage alone.
    for chunk in (end(1), usage(3), end(0), usage(4)):
        assert not two.complete
        two.add(chunk)
    assert two.complete
    assert two.last().usage == chat_pb2.Usage(
        prompt_tokens=10, completion_tokens=7, cached_prompt_tokens=2
    )


def test_text_that_is_held_back_for_a_stop_sequence_is_counted_at_once() -> None:
    stopping = tally(stop=["abc"])
    stopping.add(progress(10))
    held = stopping.add(piece("ab", 1))
    assert held is not None
    assert (held.choices, held.completion_tokens) == ((), 1)
    assert [c.content for c in choices_of(stopping, piece("x", 2))] == ["abx"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_stop_sequence_ends_its_choice_and_leaves_the_others(index: int) -> None:
    other = 1 - index
    two = tally(n=2, stop=["abc"])
    two.add(progress(10))
    assert [c.content for c in choices_of(two, piece("1ab", 1, index))] == ["1"]
    stopped = chat_pb2.ChoiceDelta(index=index, finish_reason=chat_pb2.FINISH_REASON_STOP)
    assert choices_of(two, piece("cd", 2, index)) == (stopped,)
    assert two.add(piece("more", 3, index)) is None
    two.add(piece("other", 1, other))
    for chunk in (end(index, "length"), usage(9), end(other, "length"), usage(5)):
        assert not two.complete
        two.add(chunk)
    assert two.complete
    assert two.last().completion_tokens == 2 + 5


def test_what_is_held_back_comes_with_the_end() -> None:
    stopping = tally(stop=["abc"])
    stopping.add(piece("ab", 1))
    ended = chat_pb2.ChoiceDelta(content="ab", finish_reason=chat_pb2.FINISH_REASON_LENGTH)
    assert choices_of(stopping, end(0, "length")) == (ended,)


def test_a_tool_call_piece_is_carried_over() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a"'}}
    expected = chat_pb2.ChoiceDelta(
        index=1,
        tool_calls=[chat_pb2.ToolCallDelta(index=0, id="c", name="f", arguments_json='{"a"')],
    )
    chunk = piece("", 1, index=1, delta={"tool_calls": [call]})
    assert choices_of(tally(n=2), chunk) == (expected,)


@pytest.mark.parametrize("top", [0, 1])
def test_only_the_wanted_alternatives_come(top: int) -> None:
    found = {"token": "a", "logprob": -1.0, "bytes": [97]}
    logprobs = {"content": [{**found, "top_logprobs": [found]}]}
    reading = tally(logprobs=True, top_logprobs=top)
    (token,) = choices_of(reading, piece("a", 1, logprobs=logprobs))[0].logprobs
    assert (token.token, token.logprob, token.token_bytes) == ("a", -1.0, b"a")
    assert len(token.top_logprobs) == top


def test_an_error_in_place_of_a_chunk_is_raised() -> None:
    error = {"type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}
    with pytest.raises(InvalidRequest) as caught:
        tally(prompt="Hi").add({"error": error})
    assert caught.value.violations[0].field == "input.prompt"
