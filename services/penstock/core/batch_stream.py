"""One long-lived stream that carries many operations: micro-batched out, answered in any order.

A batch is whatever came while the last one was being written, so that a lone operation costs one
hop and a flood costs few messages. When the stream breaks, everything in flight fails with
`Unavailable`: whether it was applied is not known, so the caller decides to ask again under the
same id. The stream comes back by itself with back-off; while it is away operations are refused at
once.
"""

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import grpc

from penstock.core.channel import MESSAGE_BYTES_MAX
from penstock.core.errors import DeadlineExceeded, Unavailable

logger = logging.getLogger(__name__)

IN_FLIGHT_MAX = 16_384
"""Operations that wait for an answer. More means that the peer is too slow: refuse, not pile up."""

BATCH_OPERATIONS_MAX = 512
"""Operations in a message: more would make the first of them wait for the last."""

BATCH_BYTES_MAX = MESSAGE_BYTES_MAX // 2
"""Of a message; one operation of the greatest size still fits beside the others."""

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0
"""Between two tries to open the stream, doubled each time, with jitter."""


class Operation(Protocol):
    operation_id: int

    def ByteSize(self) -> int: ...  # noqa: N802 (protobuf's name)


class Result(Protocol):
    @property
    def operation_id(self) -> int: ...


OperationT = TypeVar("OperationT", bound=Operation)
ResultT = TypeVar("ResultT", bound=Result)


class Call(Protocol):
    """What we use of `grpc.aio.StreamStreamCall`."""

    async def write(self, request: Any) -> None: ...
    async def read(self) -> Any: ...
    async def code(self) -> grpc.StatusCode: ...
    async def details(self) -> str: ...
    def done(self) -> bool: ...
    def cancel(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Wire(Generic[OperationT, ResultT]):
    """How operations travel.

    Attributes:
        open: Opens the stream.
        pack: The message of a batch.
        unpack: The results in a message.
        cancel: The operation that tells the peer to forget another one, by its id; None: untold.
        is_interim: Whether a result says only that the operation waits for others.
    """

    open: Callable[[], Call]
    pack: Callable[[Sequence[OperationT]], Any]
    unpack: Callable[[Any], Iterable[ResultT]]
    cancel: Callable[[int], OperationT] | None = None
    is_interim: Callable[[ResultT], bool] = lambda _: False


@dataclass(slots=True)
class _Pending(Generic[ResultT]):
    future: "asyncio.Future[ResultT]"
    timeout: asyncio.Timeout
    wait_seconds: float
    on_sent: Callable[[], None]
    sent: bool = False
    taken: bool = False
    """The caller has the result: one that came as the caller was cancelled, nobody has."""


@dataclass
class BatchStream(Generic[OperationT, ResultT]):
    """The client's end of the stream, for one event loop.

    Attributes:
        peer: Its name in messages, e.g. "quota".
        in_flight_max: Operations without an answer; one more is refused.
        jitter: Of the back-off.
    """

    peer: str
    wire: Wire[OperationT, ResultT]
    in_flight_max: int = IN_FLIGHT_MAX
    jitter: random.Random = field(default_factory=random.Random)
    _outgoing: dict[int, OperationT] = field(default_factory=dict, init=False)
    _pending: dict[int, _Pending[ResultT]] = field(default_factory=dict, init=False)
    _ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1), init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _runner: "asyncio.Task[None] | None" = field(default=None, init=False)
    _down: str = field(default="", init=False)
    _closing: bool = field(default=False, init=False)
    _heard: bool = field(default=False, init=False)

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    @property
    def down(self) -> str:
        """Why the stream is away; empty while it is open, or was not yet tried."""
        return self._down

    def start(self) -> None:
        """Opens the stream now, so that the first operation need not wait for it."""
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name=f"batch-stream-{self.peer}")

    async def call(
        self,
        operation: OperationT,
        *,
        timeout_seconds: float,
        wait_seconds: float = 0.0,
        on_sent: Callable[[], None] = lambda: None,
    ) -> ResultT:
        """Sends the operation (its `operation_id` is set here) and returns its last result.

        `timeout_seconds` bounds the wait for any result; an interim one grants `wait_seconds` more.
        `on_sent` is called when it leaves: before that, it was certainly not applied.
        Cancelling it takes the operation back where it was not sent, else tells the peer.

        Raises:
            Unavailable: the stream is away, broke, or has too much in flight. Whether the operation
                was applied is not known.
            DeadlineExceeded: no result in time; not known either.
        """
        self.start()
        if self._closing or self._down:
            raise self._unavailable(self._down or "this client is shutting down")
        if len(self._pending) >= self.in_flight_max:
            raise self._unavailable(f"{self.in_flight_max} operations are in flight already")
        operation.operation_id = number = next(self._ids)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_seconds) as timeout:
                pending = _Pending[ResultT](loop.create_future(), timeout, wait_seconds, on_sent)
                self._pending[number] = pending
                self._send(operation)
                result = await pending.future
                pending.taken = True
                return result
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.peer} did not answer in time", reason=f"{self.peer.upper()}_TIMEOUT"
            ) from None
        finally:
            self._forget(number)

    async def drain(self, timeout_seconds: float) -> int:
        """Takes no more, waits for what is in flight, closes. How many were left unanswered."""
        self._closing = True
        if self._pending:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._idle.wait()
        left = len(self._pending)
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        self._fail_all("this client is shutting down")
        return left

    def _send(self, operation: OperationT) -> None:
        self._outgoing[operation.operation_id] = operation
        self._wake.set()

    def _forget(self, number: int) -> None:
        pending = self._pending.pop(number, None)
        if not self._pending:
            self._idle.set()
        unsent = self._outgoing.pop(number, None) is not None
        if pending is None or unsent or not pending.sent or self._down:
            return
        if self.wire.cancel is not None and not pending.taken:
            cancel = self.wire.cancel(number)
            cancel.operation_id = next(self._ids)
            self._send(cancel)

    async def _run(self) -> None:
        backoff_seconds, told = BACKOFF_SECONDS_MIN, ""
        while True:
            heard, why = await self._serve_stream()
            self._down = why
            self._fail_all(why)
            backoff_seconds = BACKOFF_SECONDS_MIN if heard else backoff_seconds
            if heard or why != told:
                logger.warning("the stream to %s is away: %s", self.peer, why)
                told = why
            await asyncio.sleep(backoff_seconds * self.jitter.uniform(0.5, 1.0))
            backoff_seconds = min(2 * backoff_seconds, BACKOFF_SECONDS_MAX)
            self._down = ""

    async def _serve_stream(self) -> tuple[bool, str]:
        """One stream from its opening to its end: whether the peer was heard, and why it ended."""
        self._heard = False
        try:
            call = self.wire.open()
        except Exception as error:
            # A channel that was closed under us: callers must be told, not left to wait.
            logger.exception("cannot open a stream to %s", self.peer)
            return False, f"{type(error).__name__}: {error}"
        reader = asyncio.create_task(self._read(call))
        writer = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            why = await _end_of(call)
        finally:
            call.cancel()
            for task in (reader, writer):
                task.cancel()
            ends = await asyncio.gather(reader, writer, return_exceptions=True)
        for end in ends:
            # The call's own status was read already; a write into its end is an invalid state.
            expected = grpc.aio.AioRpcError | asyncio.InvalidStateError
            if isinstance(end, Exception) and not isinstance(end, expected):
                logger.error("unexpected error on the stream to %s", self.peer, exc_info=end)
        return self._heard, why

    async def _write(self, call: Call) -> None:
        while True:
            await self._wake.wait()
            # One turn of the loop: those that became ready with the first one ride along.
            await asyncio.sleep(0)
            self._wake.clear()
            while self._outgoing:
                await call.write(self.wire.pack(self._take_batch()))

    def _take_batch(self) -> list[OperationT]:
        batch: list[OperationT] = []
        size_bytes = 0
        while self._outgoing and len(batch) < BATCH_OPERATIONS_MAX and size_bytes < BATCH_BYTES_MAX:
            number = next(iter(self._outgoing))
            operation = self._outgoing[number]
            size_bytes += operation.ByteSize()
            if batch and size_bytes > BATCH_BYTES_MAX:
                break
            del self._outgoing[number]
            batch.append(operation)
            if number in self._pending:
                self._pending[number].sent = True
                self._pending[number].on_sent()
        return batch

    async def _read(self, call: Call) -> None:
        while (message := await call.read()) is not grpc.aio.EOF:
            self._heard = True
            for result in self.wire.unpack(message):
                self._take_result(result)

    def _take_result(self, result: ResultT) -> None:
        pending = self._pending.get(result.operation_id)
        if pending is None or pending.future.done():
            return
        if self.wire.is_interim(result):
            if not pending.timeout.expired():
                loop = asyncio.get_running_loop()
                pending.timeout.reschedule(loop.time() + pending.wait_seconds)
            return
        pending.future.set_result(result)

    def _fail_all(self, why: str) -> None:
        self._outgoing.clear()
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(self._unavailable(why))

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(
            f"{self.peer} is not reachable: {why}", reason=f"{self.peer.upper()}_UNAVAILABLE"
        )


async def _end_of(call: Call) -> str:
    """Why the peer ended it; one that has not ended is broken at our side."""
    if not call.done():
        return "the stream broke"
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return "the peer ended the stream"
    return await call.details() or code.name
