"""A paid API by the official SDK: what comes when nothing fails, and what stops it."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from penstock.router.backends.base import Billing
from penstock.router.backends.openai import OpenAIBackend
from penstock.type.v1.chat_pb2 import ChatInput, Usage
from support.chat import chat
from support.clock import HandClock
from support.fake_upstream import (
    HANG,
    Answer,
    FakeUpstream,
    piece,
    pieces,
    silent,
    sse,
    usage,
)
from support.paid import HANG_UP_SECONDS, KEY, SPEC, call, collect, failure, make, text


async def test_an_answer_comes_in_pieces_and_ends_with_the_providers_count(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    chunks = await collect(backend, call())
    assert text(chunks) == "hello"
    assert chunks[-1].usage == Usage(prompt_tokens=7, completion_tokens=3)
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_a_call_is_streamed_shows_our_key_and_names_the_request(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    await collect(backend, call())
    assert upstream.bodies[0]["stream"] is True
    assert upstream.bodies[0]["stream_options"] == {"include_usage": True}
    assert upstream.headers[0]["authorization"] == f"Bearer {KEY}"
    assert upstream.headers[0]["x-client-request-id"] == "req_1"
    assert upstream.paths == ["/v1/chat/completions"]


async def test_the_clients_end_user_is_handed_on_where_there_is_one(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    await collect(backend, call())
    await collect(backend, replace(call(), user="u-7"))
    assert [body.get("user") for body in upstream.bodies] == [None, "u-7"]


async def test_a_stand_in_on_this_machine_is_not_looked_for_behind_a_proxy(
    upstream: FakeUpstream, breaker_clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    backend = make(upstream.base_url, breaker_clock)
    assert text(await collect(backend, call())) == "hello"
    await backend.close()


async def test_a_raw_prompt_goes_to_completions(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    choice = {"index": 0, "text": "upon", "finish_reason": "stop", "logprobs": None}
    upstream.answer = sse({"choices": [choice]}, usage())
    chunks = await collect(backend, call(ChatInput(prompt="once", max_tokens=4)))
    assert text(chunks) == "upon"
    assert upstream.paths == ["/v1/completions"]


async def test_closing_the_stream_hangs_up_at_once(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = sse(piece("hel"), HANG)
    async with aclosing(backend.generate(call())) as chunks:
        await anext(chunks)
    await asyncio.wait_for(upstream.hung_up.wait(), HANG_UP_SECONDS)
    assert backend.view.retry_after_seconds is None


@pytest.mark.parametrize("answer", [silent(), sse(piece(role="assistant"), HANG)])
async def test_cancelling_before_the_first_delta_hangs_up_too(
    backend: OpenAIBackend, upstream: FakeUpstream, answer: Answer
) -> None:
    came = asyncio.Event()

    def noted(one: FakeUpstream) -> object:
        came.set()
        return answer(one)

    upstream.answer = noted  # type: ignore[assignment]
    task = asyncio.create_task(collect(backend, call()))
    await came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(upstream.hung_up.wait(), HANG_UP_SECONDS)


async def test_a_whole_answer_without_count_ends_without_one(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = sse(piece("hello"), piece(finish="stop"))
    chunks = await collect(backend, call())
    assert text(chunks) == "hello"
    assert all(c.usage is None for c in chunks)


async def test_once_it_streams_only_the_idle_time_out_counts(
    upstream: FakeUpstream, breaker_clock: HandClock
) -> None:
    spec = SPEC.model_copy(update={"first_byte_timeout_seconds": 0.6})
    backend = make(upstream.base_url, breaker_clock, spec)
    upstream.answer = sse(piece("a", finish="stop"), usage(), gap_seconds=0.7)
    assert text(await collect(backend, call())) == "a"
    await backend.close()


@pytest.mark.parametrize("answer", [silent(), sse(piece("hel"), HANG)])
async def test_the_deadline_ends_everything_and_is_nobodys_failure(
    backend: OpenAIBackend, upstream: FakeUpstream, answer: Answer
) -> None:
    upstream.answer = answer
    for _ in range(3):
        failed = await failure(backend, call(seconds=0.3))
    assert failed.error.reason == "DEADLINE_EXCEEDED"
    assert (failed.billing, failed.fall_back) == (Billing.UNKNOWN, False)
    assert backend.view.retry_after_seconds is None
    await asyncio.wait_for(upstream.hung_up.wait(), HANG_UP_SECONDS)


async def test_a_deadline_that_has_passed_reaches_nobody(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    failed = await failure(backend, call(seconds=0))
    assert (failed.error.reason, failed.billing) == ("DEADLINE_EXCEEDED", Billing.NOTHING)
    assert upstream.bodies == []


async def test_more_calls_than_allowed_are_refused_at_once_and_places_come_back(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = sse(piece("hel"), HANG)
    async with aclosing(backend.generate(call())) as one, aclosing(backend.generate(call())) as two:
        await anext(one)
        await anext(two)
        failed = await failure(backend)
        assert failed.error.reason == "PROVIDER_BUSY"
        # So that the plan passes over it, and nothing is held for nothing.
        assert backend.view.retry_after_seconds == 1
        assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)
    upstream.answer = sse(*pieces("hello"))
    assert text(await collect(backend, call())) == "hello"


async def test_choices_are_told_apart_and_summed(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    both = [piece("a", index=0), piece("b", index=1), piece(finish="stop")]
    upstream.answer = sse(*both, piece(index=1, finish="stop"), usage(7, 2), usage(7, 2))
    chunks = await collect(backend, call(chat(max_tokens=4, n=2)))
    assert chunks[-1].usage == Usage(prompt_tokens=7, completion_tokens=4)
    assert {(d.index, d.content) for c in chunks for d in c.deltas if d.content} == {
        (0, "a"),
        (1, "b"),
    }


async def test_a_model_that_was_removed_meanwhile_sends_the_request_elsewhere(
    backend: OpenAIBackend,
) -> None:
    failed = await failure(backend, call(model="gone"))
    assert failed.error.reason == "PROVIDER_OFF"
    assert failed.fall_back
