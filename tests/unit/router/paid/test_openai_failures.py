"""A paid API by the official SDK, against a real HTTP server that fails on purpose."""

import asyncio
import socket
from dataclasses import replace

import pytest

from penstock.router.backends.base import Billing
from penstock.router.backends.openai import OpenAIBackend
from penstock.type.v1.chat_pb2 import ChatInput, Usage
from support.chat import chat
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
from support.paid import HANG_UP_SECONDS, KEY, call, collect, failure, make, text


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
    assert failed.error.violations == ()
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, False)
    assert backend.view.retry_after_seconds is None


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("seed", "input.seed"),
        ("messages.[0].content", "input.messages"),
        ("messages[0].content", "input.messages"),
        ("response_format", "input.response_format"),
        ("max_completion_tokens", "input.max_tokens"),
    ],
)
async def test_a_faulty_request_names_our_field(
    backend: OpenAIBackend, upstream: FakeUpstream, param: str, field: str
) -> None:
    upstream.answer = failing(400, param=param)
    error = (await failure(backend)).error
    assert [field] == [v.field for v in error.violations]
    assert error.message == f"{field}: {error.violations[0].description}"


async def test_a_prompt_that_is_too_long_may_go_elsewhere(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = failing(400, code="context_length_exceeded")
    failed = await failure(backend)
    assert failed.error.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert ["input.messages"] == [v.field for v in failed.error.violations]
    assert failed.fall_back


async def test_a_raw_prompt_that_is_too_long_is_called_so(
    backend: OpenAIBackend, upstream: FakeUpstream
) -> None:
    upstream.answer = failing(400, code="context_length_exceeded")
    failed = await failure(backend, call(ChatInput(prompt="a", max_tokens=1)))
    assert ["input.prompt"] == [v.field for v in failed.error.violations]


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


async def test_a_call_is_told_as_sent_only_once_it_leaves(
    upstream: FakeUpstream, breaker_clock: HandClock
) -> None:
    sent: list[str] = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        # They fill the backlog, so that one more is neither taken nor refused.
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        unreached = make(f"http://127.0.0.1:{port}/v1", breaker_clock)
        failed = await failure(
            unreached, replace(call(seconds=0.3), on_sent=lambda: sent.append("unreached"))
        )
        for other in others:
            other.close()
    assert "DEADLINE_EXCEEDED" == failed.error.reason
    reached = make(upstream.base_url, breaker_clock)
    await collect(reached, replace(call(), on_sent=lambda: sent.append("reached")))
    assert ["reached"] == sent
    await unreached.close()
    await reached.close()


@pytest.mark.parametrize("answer", [silent(), sse(HANG)])
async def test_silence_before_the_first_chunk_ends_with_a_time_out(
    impatient: OpenAIBackend, upstream: FakeUpstream, answer: Answer
) -> None:
    upstream.answer = answer
    failed = await failure(impatient)
    assert failed.error.reason == "UPSTREAM_TIMEOUT"
    assert (failed.billing, failed.fall_back) == (Billing.UNKNOWN, True)
    await asyncio.wait_for(upstream.hung_up.wait(), HANG_UP_SECONDS)


@pytest.mark.parametrize("end", [HANG, BREAK, "{not json", '{"choices": 7}'])
async def test_after_a_delta_every_failure_is_a_broken_stream(
    impatient: OpenAIBackend, upstream: FakeUpstream, end: object
) -> None:
    upstream.answer = sse(piece("hel"), end)
    failed = await failure(impatient)
    assert failed.error.reason == "STREAM_BROKEN"
    assert failed.billing is Billing.UNKNOWN


@pytest.mark.parametrize("end", [HANG, BREAK, "{not json"])
async def test_an_answer_that_is_there_with_its_count_is_not_lost_by_a_bad_end(
    impatient: OpenAIBackend, upstream: FakeUpstream, end: object
) -> None:
    upstream.answer = sse(*pieces("hello"), end)
    chunks = await collect(impatient, call())
    assert "hello" == text(chunks)
    assert Usage(prompt_tokens=7, completion_tokens=3) == chunks[-1].usage


async def test_a_count_that_may_not_be_the_last_does_not_make_an_answer_whole(
    impatient: OpenAIBackend, upstream: FakeUpstream
) -> None:
    both = [piece("a", finish="stop"), piece("b", index=1, finish="stop")]
    upstream.answer = sse(*both, usage(7, 2), BREAK)
    failed = await failure(impatient, call(chat(n=2, max_tokens=8)))
    assert (failed.error.reason, failed.billing) == ("STREAM_BROKEN", Billing.UNKNOWN)


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
