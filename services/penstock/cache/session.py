"""One router's stream: each operation goes its own way, results go back together as they come."""

import asyncio
from collections.abc import AsyncIterable, Callable
from uuid import UUID

from penstock.cache.flights import Led
from penstock.cache.lookups import Lookups
from penstock.cache.operations import Operations
from penstock.cache.store.base import Flight, Key
from penstock.cache.v1.cache_pb2 import (
    BatchRequest,
    LookupRequest,
    LookupResponse,
    Operation,
    OperationError,
    OperationResult,
)
from penstock.core import semconv
from penstock.core.channel import MESSAGE_BYTES_MAX
from penstock.core.errors import CapacityExhausted, InvalidRequest
from penstock.core.status import told
from penstock.core.telemetry import Nothing, OperationSpan

OPERATIONS_MAX = 20_000
"""Of one stream without a result, waiting look-ups included: more than a router sends."""

RESULTS_BYTES_MAX = MESSAGE_BYTES_MAX // 2
"""Of a message; one answer of the greatest size still fits beside the others."""

SpanMaker = Callable[[str, str], OperationSpan | Nothing]


class Session:
    """Reads with `read`, written from `results`; `close` ends every flight that was led over it."""

    def __init__(self, operations: Operations, lookups: Lookups, led: Led, span: SpanMaker) -> None:
        self._operations = operations
        self._lookups = lookups
        self._led = led
        self._span = span
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._lookups_running: set[int] = set()
        self._leads: dict[int, Flight] = {}
        self._leads_by_token: dict[str, int] = {}
        self._results: list[OperationResult] = []
        self._wake = asyncio.Event()
        self._ended = False

    async def read(self, requests: AsyncIterable[BatchRequest]) -> None:
        """Until the router ends its side; operations in flight then still get their results."""
        try:
            async for request in requests:
                for operation in request.operations:
                    self._begin(operation)
        finally:
            self.end()

    def end(self) -> None:
        """No operation comes any more. Look-ups are not waited for; what stores goes on."""
        self._ended = True
        for number in self._lookups_running:
            self._tasks[number].cancel()
        self._wake.set()

    async def results(self) -> list[OperationResult]:
        """What is ready, at least one; empty at the stream's end."""
        while not self._results:
            if self._ended and not self._tasks:
                return []
            await self._wake.wait()
            self._wake.clear()
        taken, size_bytes = 0, 0
        for result in self._results:
            size_bytes += result.ByteSize()
            if taken and size_bytes > RESULTS_BYTES_MAX:
                break
            taken += 1
        batch, self._results = self._results[:taken], self._results[taken:]
        return batch

    def close(self) -> None:
        """The stream is gone: nothing is left waiting, and no flight without its leader."""
        self.end()
        for number in list(self._leads):
            self._give_up(number)

    def _begin(self, operation: Operation) -> None:
        number = operation.operation_id
        if operation.WhichOneof("operation") == "cancel_operation_id":
            self._cancel(operation.cancel_operation_id)
            return
        if len(self._tasks) >= OPERATIONS_MAX:
            error = CapacityExhausted(
                f"{OPERATIONS_MAX} operations of this stream are in flight; send fewer at once",
                reason="STREAM_FULL",
            )
            self._put(OperationResult(operation_id=number, error=_refusal(error)))
            return
        kind = operation.WhichOneof("operation")
        if kind == "lookup":
            self._lookups_running.add(number)
        elif kind in ("store", "abandon"):
            # From now on the flight is this operation's, also when the stream ends before it does.
            self._forget_lead(getattr(operation, kind).flight_token)
        task = asyncio.create_task(self._serve(operation))
        self._tasks[number] = task
        task.add_done_callback(lambda _: self._done(number))

    def _done(self, number: int) -> None:
        self._tasks.pop(number, None)
        self._lookups_running.discard(number)
        self._wake.set()

    def _cancel(self, number: int) -> None:
        """The router gave up a look-up: it waits, or its answer was on the way."""
        if number in self._lookups_running:
            self._tasks[number].cancel()
        if number in self._leads:
            self._give_up(number)

    async def _serve(self, operation: Operation) -> None:
        result = OperationResult(operation_id=operation.operation_id)
        kind = operation.WhichOneof("operation")
        try:
            with self._span(f"cache {kind}", operation.traceparent) as span:
                match kind:
                    case "lookup":
                        result.lookup.CopyFrom(await self._look_up(operation))
                        if span.recording:
                            span.set({semconv.CACHE: _verdict_name(result.lookup)})
                    case "store":
                        result.store.CopyFrom(await self._operations.store(operation.store))
                    case "abandon":
                        result.abandon.CopyFrom(await self._operations.abandon(operation.abandon))
                    case _:
                        raise InvalidRequest("operation: is empty")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  the boundary: whatever it is, this operation is told
            result.error.CopyFrom(_refusal(error))
        self._put(result)

    async def _look_up(self, operation: Operation) -> LookupResponse:
        number, request = operation.operation_id, operation.lookup
        waiting = LookupResponse(verdict=LookupResponse.VERDICT_WAITING)
        response = await self._operations.lookup(
            request,
            lambda: self._put(OperationResult(operation_id=number, lookup=waiting)),
        )
        if response.verdict == LookupResponse.VERDICT_LEAD:
            self._lead(number, request, UUID(response.flight_token))
        return response

    def _lead(self, number: int, request: LookupRequest, token: UUID) -> None:
        flight = Flight(Key(request.org_id, request.fingerprint), token)
        self._leads[number] = flight
        self._leads_by_token[str(token)] = number
        if self._ended:
            self._give_up(number)
        else:
            self._led.add(flight.key, token)

    def _give_up(self, number: int) -> None:
        flight = self._leads[number]
        self._forget_lead(str(flight.token))
        self._led.remove(flight.token)
        self._lookups.give_up(flight)

    def _forget_lead(self, token: str) -> None:
        number = self._leads_by_token.pop(token, None)
        if number is not None:
            del self._leads[number]

    def _put(self, result: OperationResult) -> None:
        self._results.append(result)
        self._wake.set()


def _verdict_name(response: LookupResponse) -> str:
    """In lower case, as in receipts: "hit"."""
    name: str = LookupResponse.Verdict.Name(response.verdict)
    return name.removeprefix("VERDICT_").lower()


def _refusal(error: Exception) -> OperationError:
    meant = told(error)
    code: int = meant.code.value[0]
    return OperationError(code=code, reason=meant.reason, message=meant.message)
