"""The cache as the router sees it: an answer, or none. Out of reach is a miss, soon and counted."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import grpc

from penstock.cache.v1.cache_pb2 import (
    AbandonRequest,
    BatchRequest,
    BatchResponse,
    LookupRequest,
    LookupResponse,
    Operation,
    OperationResult,
    StoreRequest,
)
from penstock.cache.v1.cache_pb2_grpc import CacheServiceStub
from penstock.core.batch_stream import BatchStream, Wire
from penstock.core.catalogue import CacheSettings
from penstock.core.channel import bearer
from penstock.core.clock import Clock, SystemClock
from penstock.core.deadline import Deadline
from penstock.core.errors import DeadlineExceeded, Unavailable
from penstock.router.breaker import Breaker, Trip

logger = logging.getLogger(__name__)

LOOKUP_SECONDS = 0.25
"""For the look itself, which takes milliseconds: a slow cache must not slow the request. A wait for
another request's answer has its own bound, `wait_ms_max`."""

WAIT_MARGIN_SECONDS = 1.0
"""The cache ends a wait by itself; this bounds one that died while we waited."""

STORE_SECONDS = 5.0
"""Of a store or an abandonment, which nobody's answer waits for."""

ACKNOWLEDGE_SECONDS = LOOKUP_SECONDS
"""How long a request waits until the cache has its answer; it goes on in the background."""

STORING_MAX = 10_000
"""Under way at once; more means that the cache is too slow, and answers are not kept."""

BREAKER_FAILURES = 5
BREAKER_OPEN_SECONDS = 1.0
"""A slow cache costs each request its look's time-out; while it is open they are spared it."""

_Stream = BatchStream[Operation, OperationResult]


def open_stream(channel: grpc.aio.Channel, token: str) -> _Stream:
    """The batched stream to the cache service."""
    stub = CacheServiceStub(channel)
    metadata = (bearer(token),)

    def pack(operations: Sequence[Operation]) -> BatchRequest:
        return BatchRequest(operations=operations)

    def unpack(message: BatchResponse) -> Sequence[OperationResult]:
        return message.results

    return BatchStream(
        "cache",
        Wire(
            lambda: stub.Batch(metadata=metadata),
            pack,
            unpack,
            cancel=lambda number: Operation(cancel_operation_id=number),
            is_interim=lambda result: result.lookup.verdict == LookupResponse.VERDICT_WAITING,
        ),
    )


class CacheAnswers:
    """Implements `ports.Answers`.

    Attributes:
        unavailable_count: Look-ups, stores and abandonments that found no cache.
    """

    def __init__(
        self,
        stream: _Stream,
        settings: Callable[[], CacheSettings],
        *,
        clock: Clock | None = None,
        breaker: Breaker | None = None,
        lookup_seconds: float = LOOKUP_SECONDS,
        acknowledge_seconds: float = ACKNOWLEDGE_SECONDS,
    ) -> None:
        self._stream = stream
        self._settings = settings
        self._breaker = breaker or Breaker(
            lambda: Trip(BREAKER_FAILURES, BREAKER_OPEN_SECONDS), clock or SystemClock()
        )
        self._lookup_seconds = lookup_seconds
        self._acknowledge_seconds = acknowledge_seconds
        self._storing: set[asyncio.Task[None]] = set()
        self.unavailable_count = 0

    def start(self) -> None:
        """Opens the stream, so that the first request need not wait for it."""
        self._stream.start()

    async def lookup(
        self, request: LookupRequest, deadline: Deadline, traceparent: str = ""
    ) -> LookupResponse | None:
        """See `ports.Answers`. Cancelled, it gives up the wait, or the flight it came to lead."""
        permit = self._breaker.enter()
        if permit is None:
            self.unavailable_count += 1
            return None
        left_seconds = deadline.remaining_seconds()
        try:
            result = await self._stream.call(
                Operation(lookup=request, traceparent=traceparent),
                timeout_seconds=min(self._lookup_seconds, left_seconds),
                wait_seconds=min(request.wait_ms_max / 1000 + WAIT_MARGIN_SECONDS, left_seconds),
            )
        except (Unavailable, DeadlineExceeded):
            permit.failed()
            self.unavailable_count += 1
            return None
        except asyncio.CancelledError:
            permit.dropped()
            raise
        if result.WhichOneof("result") == "lookup":
            permit.succeeded()
            return result.lookup
        self.unavailable_count += 1
        logger.warning("the cache refused a look-up: %s", result.error.reason)
        if result.error.code == grpc.StatusCode.UNAVAILABLE.value[0]:
            permit.failed()
        else:
            # The fault is this request's; the cache is well.
            permit.succeeded()
        return None

    async def store(self, request: StoreRequest, traceparent: str = "") -> None:
        """Hands the answer to the cache. What is larger than the catalogue allows is not kept."""
        if request.answer.ByteSize() > self._settings().entry_bytes_max:
            if not request.flight_token:
                return
            oversize, request = request, StoreRequest()
            request.CopyFrom(oversize)
            request.no_store = True
        await self._shielded(self._send(Operation(store=request, traceparent=traceparent)))

    async def abandon(self, request: AbandonRequest, traceparent: str = "") -> None:
        await self._shielded(self._send(Operation(abandon=request, traceparent=traceparent)))

    async def drain(self, timeout_seconds: float) -> None:
        """Waits for what is being stored, then closes the stream."""
        deadline = Deadline.after(timeout_seconds)
        if self._storing:
            await asyncio.wait(self._storing, timeout=timeout_seconds)
        await self._stream.drain(deadline.remaining_seconds())

    async def _shielded(self, sending: Coroutine[Any, Any, None]) -> None:
        """Others may wait for the answer: it is sent whatever becomes of the caller."""
        if len(self._storing) >= STORING_MAX:
            sending.close()
            self.unavailable_count += 1
            return
        task = asyncio.create_task(sending)
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
        # A cache that does not answer looks does not answer this either: nobody waits for it.
        patience_seconds = self._acknowledge_seconds if self._breaker.is_closed else 0
        await asyncio.wait({task}, timeout=patience_seconds)

    async def _send(self, operation: Operation) -> None:
        try:
            result = await self._stream.call(operation, timeout_seconds=STORE_SECONDS)
        except (Unavailable, DeadlineExceeded):
            # The stream's end, or its lease's, abandons the flight.
            self.unavailable_count += 1
            return
        if result.WhichOneof("result") == "error":
            self.unavailable_count += 1
            logger.warning("the cache refused an answer: %s", result.error.reason)
