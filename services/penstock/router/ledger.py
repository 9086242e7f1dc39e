"""The router's side of the ledger's bargain: each operation is told until there is an answer.

A reserve is tried again under the same id, which the quota service answers with the stored answer.
One that is given up while its answer may be lost is voided in the background; a void that comes
first makes its reserve, still on the way, be refused. An extension is to an absolute total, so that
it can be asked for again and again. A settle or void goes on in the background, whatever becomes of
its caller, until it is resolved.

While the ledger is known to be away (it gave no verdict at all during a whole reserve), reserves
are refused at once; every second one of them tries whether it is back.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

import grpc

from penstock.core.batch_stream import BatchStream, Wire
from penstock.core.channel import bearer
from penstock.core.clock import Clock, SystemClock
from penstock.core.deadline import Deadline
from penstock.core.errors import DeadlineExceeded, Unavailable
from penstock.quota.v1.quota_pb2 import (
    POOL_KIND_CACHE,
    BatchRequest,
    BatchResponse,
    ExtendRequest,
    ExtendResponse,
    Operation,
    OperationResult,
    ReserveRequest,
    ReserveResponse,
    SettleRequest,
    VoidRequest,
)
from penstock.quota.v1.quota_pb2_grpc import QuotaServiceStub
from penstock.router.breaker import Breaker, Trip
from penstock.router.ledger_errors import error_of, error_of_preview, is_open

logger = logging.getLogger(__name__)

ASK_TRY_SECONDS = 2.0
"""Of one try to reserve or extend: a commit takes milliseconds; a longer silence is a lost answer.
"""

ASK_SECONDS_MAX = 5.0
"""Of all tries: a client is better told than kept waiting; PostgreSQL restarts within it."""

AWAY_SECONDS = 1.0
"""After it was found to be away, and between the tries that find out whether it is back."""

RESOLVE_TRY_SECONDS = 5.0
"""Of one try to settle or void, which nobody waits for."""

ACKNOWLEDGE_SECONDS = 2.0
"""How long a caller of settle or void waits before it goes on in the background."""

BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 5.0
"""Between tries, doubled each time, with jitter: routers must not come back all at once."""

RESOLVING_MAX = 50_000
"""Settles and voids under way: an hour's outage of a busy router, in about 100 MB."""

LOST_RESERVES_MAX = RESOLVING_MAX // 2
"""Voids of reserves that were given up come only this far: in an outage there is one a request, and
they must not crowd out what was really spent. One that is dropped expires."""

LOST_ANSWER = "RESERVE_ANSWER_LOST"
"""The reason of a void whose reserve was given up."""

_Stream = BatchStream[Operation, OperationResult]


def open_stream(channel: grpc.aio.Channel, token: str) -> _Stream:
    """The batched stream to the quota service."""
    stub = QuotaServiceStub(channel)
    metadata = (bearer(token),)

    def pack(operations: Sequence[Operation]) -> BatchRequest:
        return BatchRequest(operations=operations)

    def unpack(message: BatchResponse) -> Sequence[OperationResult]:
        return message.results

    return BatchStream("quota", Wire(lambda: stub.Batch(metadata=metadata), pack, unpack))


class QuotaLedger:
    """Implements `ports.Ledger`.

    Attributes:
        unavailable_count: Reserves and extensions that were given up without an answer.
        refused_count: Settles and voids that the ledger will never take: a fault to look into.
        dropped_count: Settles and voids that found no place in the queue; their holds expire.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        token: str,
        *,
        clock: Clock | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._stream = open_stream(channel, token)
        self._stub = QuotaServiceStub(channel)
        self._metadata = (bearer(token),)
        self._clock = clock or SystemClock()
        self._breaker = Breaker(lambda: Trip(1, AWAY_SECONDS), self._clock)
        self._heard_seconds = float("-inf")
        self._random = jitter or random.Random()  # noqa: S311  spreads retries, guards nothing
        self._resolving: set[asyncio.Task[bool]] = set()
        self.unavailable_count = 0
        self.refused_count = 0
        self.dropped_count = 0

    def start(self) -> None:
        """Opens the stream, so that the first request need not wait for it."""
        self._stream.start()

    @property
    def resolving(self) -> int:
        """Settles and voids that the ledger has not acknowledged yet."""
        return len(self._resolving)

    async def reserve(
        self, request: ReserveRequest, deadline: Deadline, traceparent: str = ""
    ) -> ReserveResponse:
        """See `ports.Ledger.reserve`."""
        sent = answered = False

        def on_sent() -> None:
            nonlocal sent
            sent = True

        try:
            result = await self._ask(Operation(reserve=request), deadline, traceparent, on_sent)
            answered = True
        finally:
            # Also where the caller is cancelled: the hold may be there, and no use is made of it.
            # What was only counted holds nothing.
            if sent and not answered and request.pool != POOL_KIND_CACHE:
                void = VoidRequest(
                    reservation_id=request.reservation_id,
                    reason=LOST_ANSWER,
                    key_id=request.key_id,
                )
                self._resolve(Operation(void=void, traceparent=traceparent), LOST_RESERVES_MAX)
        if result.WhichOneof("result") == "error":
            raise error_of(result.error, self._clock)
        return result.reserve

    async def preview(self, request: ReserveRequest, deadline: Deadline) -> ReserveResponse:
        """See `ports.Ledger.preview`."""
        try:
            return await self._stub.PreviewReserve(
                request,
                metadata=self._metadata,
                timeout=min(ASK_TRY_SECONDS, deadline.remaining_seconds()),
            )
        except grpc.aio.AioRpcError as error:
            raise error_of_preview(error, self._clock) from None

    async def extend(
        self, request: ExtendRequest, deadline: Deadline, traceparent: str = ""
    ) -> ExtendResponse:
        """See `ports.Ledger.extend`."""
        result = await self._ask(Operation(extend=request), deadline, traceparent)
        if result.WhichOneof("result") == "error":
            raise error_of(result.error, self._clock)
        return result.extend

    async def settle(self, request: SettleRequest, traceparent: str = "") -> bool:
        """See `ports.Ledger.settle`."""
        return await self._acknowledged(Operation(settle=request, traceparent=traceparent))

    async def void(self, request: VoidRequest, traceparent: str = "") -> bool:
        """See `ports.Ledger.void`."""
        return await self._acknowledged(Operation(void=request, traceparent=traceparent))

    async def drain(self, timeout_seconds: float) -> int:
        """Waits for what is being resolved, then closes the stream. How many are left.

        Those that are left are lost with this process: their holds expire (LEDGER, I8).
        """
        deadline = Deadline.after(timeout_seconds)
        while self._resolving and deadline.remaining_seconds() > 0:
            await asyncio.wait(self._resolving, timeout=deadline.remaining_seconds())
        left = list(self._resolving)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if left:
            logger.error("%d settles and voids were not acknowledged before the end", len(left))
        await self._stream.drain(deadline.remaining_seconds())
        return len(left)

    async def _ask(
        self,
        operation: Operation,
        deadline: Deadline,
        traceparent: str,
        on_sent: Callable[[], None] = lambda: None,
    ) -> OperationResult:
        """The ledger's verdict on a reserve or an extension; raises where there is none in time."""
        probes = not self._breaker.is_closed
        permit = self._breaker.enter()
        if permit is None:
            raise self._away("it did not answer others", self._breaker.retry_after_seconds)
        began_seconds = self._clock.monotonic_seconds()
        until = Deadline.after(min(ASK_SECONDS_MAX, deadline.remaining_seconds()))
        operation.traceparent = traceparent
        try:
            result, why = await self._tries(operation, until, on_sent, once=probes)
            if result is not None:
                return result
            # Nobody was answered all the while: it is away, and not only this account slow. A
            # caller with less time than one try takes has found out nothing.
            waited_seconds = self._clock.monotonic_seconds() - began_seconds
            waited_enough = deadline.remaining_seconds() > 0 or waited_seconds >= ASK_TRY_SECONDS
            if self._heard_seconds < began_seconds and waited_enough:
                permit.failed()
        finally:
            permit.dropped()  # only where no verdict was given: the caller went away
        if deadline.remaining_seconds() <= 0:
            self.unavailable_count += 1
            raise DeadlineExceeded(
                f"the deadline passed before the ledger answered ({why}); nothing was sent"
            )
        raise self._away(why, ASK_SECONDS_MAX)

    async def _tries(
        self, operation: Operation, until: Deadline, on_sent: Callable[[], None], *, once: bool
    ) -> tuple[OperationResult | None, str]:
        """The verdict, or why there is none."""
        backoff = self._backoff()
        why = "the deadline passed before anything was reserved"
        while (left_seconds := until.remaining_seconds()) > 0:
            try_seconds = min(ASK_TRY_SECONDS, left_seconds)
            again = Operation()
            again.CopyFrom(operation)
            again.deadline_ms = max(1, int(try_seconds * 1000))
            try:
                result = await self._stream.call(
                    again, timeout_seconds=try_seconds, on_sent=on_sent
                )
            except (Unavailable, DeadlineExceeded) as error:
                why = error.message
            else:
                if not is_open(result):
                    self._heard()
                    return result, ""
                why = error_of(result.error, self._clock).message
            if once:
                break
            await asyncio.sleep(min(backoff(), until.remaining_seconds()))
        return None, why

    def _heard(self) -> None:
        self._heard_seconds = self._clock.monotonic_seconds()
        self._breaker.heard()

    def _away(self, why: str, retry_after_seconds: float | None) -> Unavailable:
        self.unavailable_count += 1
        return Unavailable(
            f"the ledger cannot be reached, so nothing may be spent ({why}); try again",
            reason="LEDGER_UNAVAILABLE",
            retry_after_seconds=retry_after_seconds,
        )

    async def _acknowledged(self, operation: Operation) -> bool:
        task = self._resolve(operation)
        if task is None:
            return False
        # `wait` cancels nothing: neither its time-out nor the caller's end reaches the task.
        done, _ = await asyncio.wait({task}, timeout=ACKNOWLEDGE_SECONDS)
        return bool(done) and task.result()

    def _resolve(
        self, operation: Operation, resolving_max: int = RESOLVING_MAX
    ) -> "asyncio.Task[bool] | None":
        if len(self._resolving) >= resolving_max:
            self.dropped_count += 1
            logger.error("too many settles and voids under way, dropped: %s", _name(operation))
            return None
        task = asyncio.create_task(self._tell(operation))
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)
        return task

    async def _tell(self, operation: Operation) -> bool:
        """Until the ledger has it (True), or says that it never will (False)."""
        backoff = self._backoff()
        while True:
            try:
                result = await self._stream.call(operation, timeout_seconds=RESOLVE_TRY_SECONDS)
            except (Unavailable, DeadlineExceeded):
                pass
            else:
                if not is_open(result):
                    self._heard()
                if result.WhichOneof("result") != "error":
                    return True
                if not is_open(result):
                    self.refused_count += 1
                    reason = result.error.reason
                    logger.error("the ledger refused %s: %s", _name(operation), reason)
                    return False
            await asyncio.sleep(backoff())

    def _backoff(self) -> "Callable[[], float]":
        step_seconds = BACKOFF_SECONDS_MIN

        def next_seconds() -> float:
            nonlocal step_seconds
            pause_seconds = step_seconds * self._random.uniform(0.5, 1.0)
            step_seconds = min(2 * step_seconds, BACKOFF_SECONDS_MAX)
            return pause_seconds

        return next_seconds


def _name(operation: Operation) -> str:
    kind = operation.WhichOneof("operation")
    assert kind is not None
    return f"{kind} of {getattr(operation, kind).reservation_id}"
