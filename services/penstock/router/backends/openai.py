"""A paid API that speaks OpenAI's protocol, by OpenAI's own SDK.

Always called with stream and include_usage, for unary callers too: only a streaming upstream stops
when we hang up. Nothing is retried here: the flow decides, since each attempt is held and billed.
"""

import asyncio
import ipaddress
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai

from penstock.core import errors
from penstock.core.catalogue import PaidModel, Provider
from penstock.core.clock import Clock
from penstock.core.deadline import Deadline
from penstock.router.backends import openai_wire as wire
from penstock.router.backends.base import (
    AttemptFailed,
    Billing,
    Call,
    Chunk,
    ProviderView,
    deadline_passed,
)
from penstock.router.backends.openai_errors import Cut, MalformedAnswer, Silent, judge
from penstock.router.backends.openai_usage import UsageTally
from penstock.router.breaker import Breaker, Permit

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"

KEEPALIVE_CONNECTIONS_MAX = 64
"""Idle connections kept open to one provider: a new one costs a TLS handshake."""

RETRY_AFTER_SECONDS_BUSY = 1.0
"""Told when `in_flight_max` is reached: one of so many calls ends about once a second."""

_on_sent: ContextVar[Callable[[], None]] = ContextVar("on_sent")
"""Of the call that this task is about to make: the SDK has no way to hand it to the transport."""

PROVIDER_FAULTS = (openai.APIError, MalformedAnswer, Silent, Cut)


@dataclass(frozen=True, slots=True)
class Access:
    """How a provider is reached."""

    label: str
    """Its name in receipts and in the ledger."""
    base_url: str
    api_key: str | None = field(repr=False)
    """None: the provider is off."""


class _DeadlinePassed(Exception):
    """The request's own time is over."""


@dataclass(slots=True)
class _Progress:
    """What one call got so far."""

    choices: int
    tally: UsageTally
    has_delivered: bool = False
    finished: set[int] = field(default_factory=set)

    @property
    def is_whole(self) -> bool:
        """Nothing that may still come is a part of the answer, or changes its count."""
        return len(self.finished) >= self.choices and self.tally.is_final


class OpenAIBackend:
    """See `base.Backend`. One provider, under one name of the catalogue."""

    def __init__(self, *, spec: Provider, access: Access, breaker: Breaker, clock: Clock) -> None:
        self.spec = spec
        """Replaced by a reload that changes models only."""
        self.access = access
        self._breaker = breaker
        self._clock = clock
        self._in_flight = 0
        self._is_retired = False
        self._last_error: errors.PenstockError | None = None
        self._client = _client(spec, access) if access.api_key else None

    @property
    def view(self) -> ProviderView:
        return ProviderView(
            label=self.access.label,
            enabled=self._client is not None,
            retry_after_seconds=self._retry_after_seconds(),
        )

    def _retry_after_seconds(self) -> float | None:
        if self._in_flight >= self.spec.in_flight_max:
            return RETRY_AFTER_SECONDS_BUSY
        return self._breaker.retry_after_seconds

    async def retire(self) -> None:
        """Takes no more calls from now; the connections close when the last stream has ended."""
        self._is_retired = True
        if self._in_flight == 0:
            await self.close()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        client, model = self._demand(call)
        permit = self._breaker.enter()
        if permit is None:
            raise self._ejected()
        self._in_flight += 1
        try:
            async with aclosing(self._judged(client, model, call, permit)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            permit.dropped()  # only where no verdict was given: the caller went away
            self._in_flight -= 1
            if self._is_retired and self._in_flight == 0:
                await self.close()

    def _demand(self, call: Call) -> tuple[openai.AsyncOpenAI, PaidModel]:
        """The client and the model, or why there is nothing to be called."""
        label = self.access.label
        if call.deadline.remaining_seconds() <= 0:
            raise deadline_passed(Billing.NOTHING)
        model = self.spec.models.get(call.model)
        if self._client is None or self._is_retired or model is None:
            raise AttemptFailed(
                errors.FailedPrecondition(
                    f"{label}/{call.model} is off: no API key is configured, or it was removed",
                    reason="PROVIDER_OFF",
                    metadata={"provider": label},
                ),
                billing=Billing.NOTHING,
                fall_back=True,
            )
        if self._in_flight >= self.spec.in_flight_max:
            raise AttemptFailed(
                errors.CapacityExhausted(
                    f"{self._in_flight} calls to {label} are in flight, which is its limit here",
                    reason="PROVIDER_BUSY",
                    metadata={"provider": label},
                    retry_after_seconds=RETRY_AFTER_SECONDS_BUSY,
                ),
                billing=Billing.NOTHING,
                fall_back=True,
            )
        return self._client, model

    def _ejected(self) -> AttemptFailed:
        """Open breaker: what its last failure said, with the time that is left of it."""
        label = self.access.label
        kind = type(self._last_error) if self._last_error else errors.UpstreamFailed
        error = kind(
            f"{label} is left alone for a while after failures; try again later",
            reason=self._last_error.reason if self._last_error else None,
            metadata={"provider": label},
            retry_after_seconds=self._breaker.retry_after_seconds,
        )
        return AttemptFailed(error, billing=Billing.NOTHING, fall_back=True)

    async def _judged(
        self, client: openai.AsyncOpenAI, model: PaidModel, call: Call, permit: Permit
    ) -> AsyncGenerator[Chunk, None]:
        """The stream, with every failure told to the breaker and turned into an AttemptFailed."""
        choices = max(1, call.input.n)
        progress = _Progress(choices, UsageTally(choices))
        try:
            async with aclosing(self._stream(client, model, call, permit, progress)) as chunks:
                async for chunk in chunks:
                    yield chunk
            permit.succeeded()
        except _DeadlinePassed:
            raise deadline_passed(Billing.UNKNOWN) from None
        except PROVIDER_FAULTS as failure:
            verdict = judge(
                failure,
                label=self.access.label,
                chat=call.input,
                has_delivered=progress.has_delivered,
                now_unix_seconds=self._clock.unix_seconds(),
            )
            logger.info("%s: %s", self.access.label, verdict.failed.error.reason)
            if verdict.trips:
                permit.failed()
            else:
                permit.succeeded()
            if verdict.pause_seconds is not None:
                self._breaker.pause(verdict.pause_seconds)
            if not self._breaker.is_closed:
                self._last_error = verdict.failed.error
            raise verdict.failed from failure

    async def _stream(
        self,
        client: openai.AsyncOpenAI,
        model: PaidModel,
        call: Call,
        permit: Permit,
        progress: _Progress,
    ) -> AsyncGenerator[Chunk, None]:
        params = wire.params_of(call.input, call.model, model)
        if call.user:
            params["user"] = call.user
        create: Any = (
            client.completions.create
            if call.input.HasField("prompt")
            else client.chat.completions.create
        )
        first_byte = Deadline.after(self.spec.first_byte_timeout_seconds, self._clock)
        _on_sent.set(call.on_sent)
        async with _within(first_byte.remaining_seconds(), call.deadline):
            stream = await create(**params, extra_headers={"X-Client-Request-Id": call.request_id})
        try:
            _check_content_type(stream.response)
            seconds = first_byte.remaining_seconds()
            while (chunk := await _next(stream, seconds, call.deadline)) is not None:
                permit.progressed()
                seconds = self.spec.idle_timeout_seconds
                deltas = _take(chunk, progress)
                if deltas:
                    progress.has_delivered = True
                    yield Chunk(deltas=deltas)
        except (*PROVIDER_FAULTS, _DeadlinePassed):
            # Where only the end's own mark is missing, the answer and its count are there.
            if not progress.is_whole:
                raise
        finally:
            # Reached by closing and by cancellation too: the connection closes, the upstream stops.
            await stream.close()
        yield _last(progress)


def _client(spec: Provider, access: Access) -> openai.AsyncOpenAI:
    timeout = httpx2.Timeout(
        # Reading has time-outs of its own here: first byte, idle, deadline.
        None,
        connect=spec.connect_timeout_seconds,
        write=spec.first_byte_timeout_seconds,
        pool=spec.connect_timeout_seconds,
    )
    limits = httpx2.Limits(
        max_connections=spec.in_flight_max, max_keepalive_connections=KEEPALIVE_CONNECTIONS_MAX
    )
    return openai.AsyncOpenAI(
        api_key=access.api_key,
        base_url=access.base_url,
        max_retries=0,
        timeout=timeout,
        http_client=openai.DefaultAsyncHttpxClient(
            timeout=timeout,
            limits=limits,
            trust_env=not _is_loopback(access.base_url),
            event_hooks={"request": [_watch_sending]},
        ),
    )


async def _watch_sending(request: httpx2.Request) -> None:
    """Tells the call when its first byte leaves; connecting before it may take long, or fail."""
    on_sent = _on_sent.get()

    async def trace(event: str, info: object) -> None:
        del info
        if event.endswith(".send_request_headers.started"):
            on_sent()

    request.extensions = {**request.extensions, "trace": trace}


def _is_loopback(base_url: str) -> bool:
    """A stand-in on this machine is not to be looked for behind the site's proxy."""
    host = httpx2.URL(base_url).host
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@asynccontextmanager
async def _within(seconds: float, deadline: Deadline) -> AsyncIterator[None]:
    left = deadline.remaining_seconds()
    try:
        async with asyncio.timeout(min(seconds, left)):
            yield
    except TimeoutError:
        error: Exception = _DeadlinePassed() if left <= seconds else Silent()
        raise error from None


async def _next(stream: Any, seconds: float, deadline: Deadline) -> Any:
    """The next chunk; None at the end."""
    try:
        async with _within(seconds, deadline):
            return await anext(stream, None)
    except ValueError as error:
        raise MalformedAnswer("a piece of the stream is no valid JSON") from error


def _check_content_type(response: httpx2.Response) -> None:
    content_type = response.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != EVENT_STREAM:
        raise MalformedAnswer(f"content type {content_type[:80]!r} in place of {EVENT_STREAM}")


def _take(chunk: Any, progress: _Progress) -> list[Any]:
    try:
        deltas = wire.deltas_of(chunk)
        progress.tally.add(chunk)
    except wire.MALFORMED as error:
        raise MalformedAnswer("a piece of the stream is not of OpenAI's shape") from error
    progress.finished |= {delta.index for delta in deltas if delta.finish_reason}
    return deltas


def _last(progress: _Progress) -> Chunk:
    """The end: with the upstream's count, or, if the answer is whole all the same, without."""
    usage = progress.tally.total()
    if usage is None and len(progress.finished) < progress.choices:
        raise Cut
    return Chunk(usage=usage)
