"""A paid API by the official SDK, against a real HTTP server that fails on purpose."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from penstock.core.catalogue import Provider
from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.router.backends.base import AttemptFailed, Billing, Call, Chunk
from penstock.router.backends.openai import Access, OpenAIBackend
from penstock.router.breaker import Breaker
from penstock.type.v1.chat_pb2 import ChatInput, Usage
from support.chat import catalogue, chat
from support.clock import HandClock
from support.fake_upstream import (
    BREAK,
    HANG,
    Answer,
    FakeUpstream,
    failing,
    page,
    piece,
    pieces,
    silent,
    sse,
    usage,
)

KEY = "sk-very-secret-0123456789"
SPEC = (
    catalogue()
    .providers["acme"]
    .model_copy(
        update={
            "connect_timeout_seconds": 0.5,
            "first_byte_timeout_seconds": 0.3,
            "idle_timeout_seconds": 0.3,
            "in_flight_max": 2,
        }
    )
)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
def breaker_clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def backend(upstream: FakeUpstream, breaker_clock: HandClock) -> AsyncIterator[OpenAIBackend]:
    backend = make(upstream.base_url, breaker_clock)
    yield backend
    await backend.close()


def make(base_url: str, clock: HandClock, spec: Provider = SPEC) -> OpenAIBackend:
    breaker = Breaker(failures=3, open_seconds=5, clock=clock)
    access = Access(label="acme", base_url=base_url, api_key=KEY)
    return OpenAIBackend(spec=spec, access=access, breaker=breaker, clock=SystemClock())


def call(asked: ChatInput | None = None, *, seconds: float = 20, model: str = "large") -> Call:
    return Call(
        request_id="req_1",
        model=model,
        input=asked or chat(max_tokens=8),
        deadline=Deadline.after(seconds),
    )


async def collect(backend: OpenAIBackend, asked: Call) -> list[Chunk]:
    return [chunk async for chunk in backend.generate(asked)]


async def failure(backend: OpenAIBackend, asked: Call | None = None) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        await collect(backend, asked or call())
    assert KEY not in repr(caught.value.error.message)
    return caught.value


def text(chunks: list[Chunk]) -> str:
    return "".join(d.content for c in chunks for d in c.deltas)


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
    await asyncio.wait_for(upstream.hung_up.wait(), 0.1)
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
    await asyncio.wait_for(upstream.hung_up.wait(), 0.2)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "Wed, 01 Jan 2020 00:00:00 GMT"}, 0),
    ],
)
async def test_a_rate_limit_is_told_with_its_time(
    backend: OpenAIBackend, upstream: FakeUpstream, headers: dict[str, str], seconds: float
) -> None:
    upstream.answer = failing(429, headers, code="rate_limit_exceeded")
    failed = await failure(backend)
    assert failed.error.reason == "UPSTREAM_RATE_LIMITED"
    assert failed.error.retry_after_seconds == seconds
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)


async def test_retry_after_is_obeyed(
    backend: OpenAIBackend, upstream: FakeUpstream, breaker_clock: HandClock
) -> None:
    upstream.answer = failing(429, {"retry-after": "30"})
    await failure(backend)
    upstream.answer = sse(*pieces("hello"))
    assert backend.view.retry_after_seconds == 30
    refused = await failure(backend)
    assert (refused.error.reason, refused.billing) == ("UPSTREAM_RATE_LIMITED", Billing.NOTHING)
    assert len(upstream.bodies) == 1
    breaker_clock.now += 30
    assert backend.view.retry_after_seconds is None
    assert text(await collect(backend, call())) == "hello"


async def test_an_account_without_credit_is_told_from_a_rate_limit(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = failing(429, code="insufficient_quota")
    failed = await failure(backend)
    assert failed.error.reason == "PROVIDER_QUOTA_EXHAUSTED"
    assert backend.view.retry_after_seconds == 60


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_the_operators_affair(
    backend: OpenAIBackend, upstream: FakeUpstream, status: int
) -> None:
    upstream.answer = failing(status, message=f"Incorrect API key provided: {KEY}")
    failed = await failure(backend)
    assert failed.error.reason == "PROVIDER_CREDENTIALS_INVALID"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_faulty_request_is_told_in_the_providers_words_without_keys(
    backend: OpenAIBackend, upstream: FakeUpstream, status: int
) -> None:
    upstream.answer = failing(status, message=f"seed is odd, {KEY}")
    for _ in range(4):
        failed = await failure(backend)
    assert failed.error.message == "acme refuses the request: seed is odd, [key]"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, False)
    assert backend.view.retry_after_seconds is None


async def test_a_prompt_that_is_too_long_may_go_elsewhere(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = failing(400, code="context_length_exceeded")
    failed = await failure(backend)
    assert failed.error.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert failed.fall_back


@pytest.mark.parametrize(
    "answer", [failing(404), failing(400, code="model_not_found"), page("<html>", "text/html")]
)
async def test_a_wrong_address_or_model_sends_the_request_elsewhere(
    backend: OpenAIBackend, upstream: FakeUpstream, answer: Answer
) -> None:
    upstream.answer = answer
    failed = await failure(backend)
    assert failed.error.reason in {"UPSTREAM_MODEL_MISSING", "UPSTREAM_MALFORMED"}
    assert failed.fall_back


@pytest.mark.parametrize(
    ("status", "billing"),
    [
        (500, Billing.NOTHING),
        (503, Billing.NOTHING),
        (502, Billing.UNKNOWN),
        (504, Billing.UNKNOWN),
    ],
)
async def test_server_errors_eject_after_three_in_a_row(
    backend: OpenAIBackend, upstream: FakeUpstream, status: int, billing: Billing
) -> None:
    upstream.answer = failing(status)
    for _ in range(3):
        failed = await failure(backend)
        assert failed.error.reason == "UPSTREAM_FAILED"
        assert (failed.billing, failed.fall_back) == (billing, True)
    ejected = await failure(backend)
    assert (ejected.error.reason, ejected.billing) == ("UPSTREAM_FAILED", Billing.NOTHING)
    assert ejected.error.retry_after_seconds == 5
    assert len(upstream.bodies) == 3


async def test_a_provider_that_is_not_there_billed_nothing(breaker_clock: HandClock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    backend = make(f"http://127.0.0.1:{port}/v1", breaker_clock)
    failed = await failure(backend)
    assert failed.error.reason == "UPSTREAM_UNREACHABLE"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)
    assert str(port) not in failed.error.message
    await backend.close()


@pytest.mark.parametrize("answer", [silent(), sse(HANG)])
async def test_silence_before_the_first_chunk_ends_with_a_time_out(
    backend: OpenAIBackend, upstream: FakeUpstream, answer: Answer
) -> None:
    upstream.answer = answer
    failed = await failure(backend)
    assert failed.error.reason == "UPSTREAM_TIMEOUT"
    assert (failed.billing, failed.fall_back) == (Billing.UNKNOWN, True)
    await asyncio.wait_for(upstream.hung_up.wait(), 0.2)


@pytest.mark.parametrize("end", [HANG, BREAK, "{not json", '{"choices": 7}'])
async def test_after_a_delta_every_failure_is_a_broken_stream(
    backend: OpenAIBackend, upstream: FakeUpstream, end: object
) -> None:
    upstream.answer = sse(piece("hel"), end)
    failed = await failure(backend)
    assert failed.error.reason == "STREAM_BROKEN"
    assert failed.billing is Billing.UNKNOWN


async def test_an_error_in_mid_stream_is_a_broken_stream(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = sse(piece("hel"), {"error": {"message": "overloaded", "code": 500}})
    failed = await failure(backend)
    assert failed.error.metadata["cause"] == "UPSTREAM_FAILED"
    assert failed.billing is Billing.UNKNOWN


@pytest.mark.parametrize("done", [True, False])
async def test_a_stream_that_ends_before_its_answer_is_broken(
    backend: OpenAIBackend, upstream: FakeUpstream, done: bool
) -> None:
    upstream.answer = sse(piece("hel"), done=done)
    failed = await failure(backend)
    assert failed.error.reason == "STREAM_BROKEN"


@pytest.mark.parametrize(
    "answer",
    [sse("{not json"), sse(), page('{"choices": []}', "application/json"), sse(BREAK)],
)
async def test_before_a_delta_nonsense_sends_the_request_elsewhere(
    backend: OpenAIBackend, upstream: FakeUpstream, answer: Answer
) -> None:
    upstream.answer = answer
    failed = await failure(backend)
    assert failed.error.reason in {"UPSTREAM_MALFORMED", "UPSTREAM_BROKEN"}
    assert (failed.billing, failed.fall_back) == (Billing.UNKNOWN, True)


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
    spec = SPEC.model_copy(update={"first_byte_timeout_seconds": 0.2, "idle_timeout_seconds": 5.0})
    backend = make(upstream.base_url, breaker_clock, spec)
    upstream.answer = sse(*pieces("a b"), gap_seconds=0.3)
    assert text(await collect(backend, call())) == "ab"
    await backend.close()


async def test_a_slow_stream_may_take_longer_than_its_idle_time_out(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = sse(*pieces("a b c d"), gap_seconds=0.1)
    assert text(await collect(backend, call())) == "abcd"


@pytest.mark.parametrize("answer", [silent(), sse(piece("hel"), HANG)])
async def test_the_deadline_ends_everything_and_is_nobodys_failure(
    backend: OpenAIBackend, upstream: FakeUpstream, answer: Answer
) -> None:
    upstream.answer = answer
    for _ in range(3):
        failed = await failure(backend, call(seconds=0.1))
    assert failed.error.reason == "DEADLINE_EXCEEDED"
    assert (failed.billing, failed.fall_back) == (Billing.UNKNOWN, False)
    assert backend.view.retry_after_seconds is None
    await asyncio.wait_for(upstream.hung_up.wait(), 0.2)


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
