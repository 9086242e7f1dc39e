"""A quota service with faults: real gRPC, a small idempotent ledger in memory, a script of faults.

It is a fake for the client's side of the bargain alone; the real service has tests of its own.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum, auto

import grpc
from google.rpc import code_pb2

from penstock.core.channel import connect
from penstock.quota.v1 import quota_pb2, quota_pb2_grpc
from penstock.quota.v1.quota_pb2 import Operation, OperationError, OperationResult
from penstock.router.ledger import QuotaLedger

TOKEN = "test-service-token"


class Fault(Enum):
    NONE = auto()
    BREAK = auto()
    """The stream breaks before the operation is applied."""
    LOSE = auto()
    """It is applied, and the stream breaks before it is answered."""
    SILENCE = auto()
    """It is applied and never answered; the stream lives."""
    AWAY = auto()
    """UNAVAILABLE, not applied."""
    TWICE = auto()
    """Answered twice."""


def once(fault: Fault, kind: str) -> Callable[[Operation], Fault]:
    """The fault for the first operation of the kind, none for the others."""
    left = [fault]

    def faults(operation: Operation) -> Fault:
        if operation.WhichOneof("operation") == kind and left:
            return left.pop()
        return Fault.NONE

    return faults


@dataclass
class FaultyQuota(quota_pb2_grpc.QuotaServiceServicer):
    """`faults` is asked for each operation; `down` breaks each stream at once."""

    faults: Callable[[Operation], Fault] = lambda _: Fault.NONE
    limit_nano_usd: int = 10**12
    down: bool = False
    states: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By reservation: its state and its amount."""
    refusals: list[OperationError] = field(default_factory=list)
    """Each refuses one reserve, first come, first served."""
    seen: list[Operation] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    streams: int = 0

    async def Batch(self, request_iterator, context):
        self.streams += 1
        results: asyncio.Queue[OperationResult | None] = asyncio.Queue()

        async def read() -> None:
            async for request in request_iterator:
                self.batches.append(len(request.operations))
                for operation in request.operations:
                    if not await self._take(operation, results):
                        break
            await results.put(None)

        reader = asyncio.create_task(read())
        try:
            while True:
                if self.down:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
                result = await results.get()
                if result is None:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "broken on purpose")
                yield quota_pb2.BatchResponse(results=[result])
        finally:
            reader.cancel()

    async def _take(
        self, operation: Operation, results: "asyncio.Queue[OperationResult | None]"
    ) -> bool:
        self.seen.append(operation)
        fault = self.faults(operation)
        if fault is Fault.BREAK:
            await results.put(None)
            return False
        result = OperationResult(operation_id=operation.operation_id)
        if fault is Fault.AWAY:
            result.error.CopyFrom(_error(code_pb2.UNAVAILABLE, "LEDGER_UNAVAILABLE"))
            await results.put(result)
            return True
        self._apply(operation, result)
        if fault is Fault.LOSE:
            await results.put(None)
            return False
        if fault is not Fault.SILENCE:
            await results.put(result)
        if fault is Fault.TWICE:
            await results.put(result)
        return True

    def _apply(self, operation: Operation, result: OperationResult) -> None:
        match operation.WhichOneof("operation"):
            case "reserve":
                self._reserve(operation.reserve, result)
            case "extend":
                self._extend(operation.extend, result)
            case "settle":
                self._settle(operation.settle, result)
            case "void":
                state, amount = self.states.get(operation.void.reservation_id, ("", 0))
                if state == "settled":
                    result.error.CopyFrom(
                        _error(code_pb2.FAILED_PRECONDITION, "RESERVATION_SETTLED")
                    )
                    return
                self.states[operation.void.reservation_id] = ("voided", 0)
                result.void.released_nano_usd = amount if state == "held" else 0

    def _reserve(self, reserve: quota_pb2.ReserveRequest, result: OperationResult) -> None:
        if self.refusals:
            result.error.CopyFrom(self.refusals.pop(0))
            return
        state, _ = self.states.get(reserve.reservation_id, ("", 0))
        if state == "voided":
            result.error.CopyFrom(_error(code_pb2.FAILED_PRECONDITION, "RESERVATION_VOIDED"))
            return
        if not state and self.used_nano_usd + reserve.amount_nano_usd > self.limit_nano_usd:
            result.error.CopyFrom(_error(code_pb2.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED"))
            result.error.message = "budget 'b' has 0.00 USD left"
            result.error.refusal.budget_id = "bud_1"
            result.error.refusal.budget_name = "b"
            result.error.refusal.window = "total"
            result.error.refusal.limit_nano_usd = self.limit_nano_usd
            result.error.refusal.posted_nano_usd = self.posted_nano_usd
            return
        if not state:
            self.states[reserve.reservation_id] = ("held", reserve.amount_nano_usd)
        result.reserve.reservation_id = reserve.reservation_id

    def _extend(self, extend: quota_pb2.ExtendRequest, result: OperationResult) -> None:
        state, amount = self.states.get(extend.reservation_id, ("", 0))
        if state != "held":
            result.error.CopyFrom(_error(code_pb2.FAILED_PRECONDITION, "RESERVATION_RESOLVED"))
            return
        more = max(0, extend.amount_nano_usd - amount)
        if self.used_nano_usd + more > self.limit_nano_usd:
            result.error.CopyFrom(_error(code_pb2.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED"))
            return
        self.states[extend.reservation_id] = ("held", amount + more)
        result.extend.amount_nano_usd = amount + more

    def _settle(self, settle: quota_pb2.SettleRequest, result: OperationResult) -> None:
        state, amount = self.states.get(settle.reservation_id, ("", 0))
        if not state:
            result.error.CopyFrom(_error(code_pb2.NOT_FOUND, "RESERVATION_UNKNOWN"))
        elif state == "settled" and amount != settle.amount_nano_usd:
            result.error.CopyFrom(_error(code_pb2.FAILED_PRECONDITION, "RESERVATION_SETTLED"))
        else:
            self.states[settle.reservation_id] = ("settled", settle.amount_nano_usd)
            result.settle.posted_nano_usd = settle.amount_nano_usd

    @property
    def used_nano_usd(self) -> int:
        return sum(amount for _, amount in self.states.values())

    @property
    def posted_nano_usd(self) -> int:
        return sum(amount for state, amount in self.states.values() if state == "settled")

    @property
    def held_nano_usd(self) -> int:
        return sum(amount for state, amount in self.states.values() if state == "held")

    def count(self, kind: str) -> int:
        return sum(operation.WhichOneof("operation") == kind for operation in self.seen)


def _error(code: int, reason: str) -> OperationError:
    return OperationError(code=code, reason=reason, message=reason)


@contextlib.asynccontextmanager
async def serving(quota: FaultyQuota, port: int = 0) -> AsyncIterator[str]:
    """Its address, while it listens."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    quota_pb2_grpc.add_QuotaServiceServicer_to_server(quota, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def ledger_at(address: str) -> AsyncIterator[QuotaLedger]:
    channel = connect(address)
    ledger = QuotaLedger(channel, TOKEN)
    ledger.start()
    try:
        yield ledger
    finally:
        await ledger.drain(0.5)
        await channel.close()
