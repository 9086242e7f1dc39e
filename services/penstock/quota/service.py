"""QuotaService: proto ⇄ domain. One operation a call, or many on a stream."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from penstock.core import errors
from penstock.core.telemetry import operation_span
from penstock.quota import wire
from penstock.quota.balances import Balances
from penstock.quota.batcher import Batcher, Tell, Waiting
from penstock.quota.entries import Entries
from penstock.quota.key_watch import KeyWatch
from penstock.quota.ledger import Operation
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.ledger_store import LedgerStore, Outcome, Timed
from penstock.quota.v1 import quota_pb2, quota_pb2_grpc

MESSAGE_OPERATIONS_MAX = 1_024
"""In one message of a stream: more would make the first wait for the last."""
STREAM_OPERATIONS_MAX = 32_768
"""Unanswered on one stream; beyond, nothing is read until answers have gone out."""
DEADLINE_MS_MAX = 3_600_000

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class QuotaService(quota_pb2_grpc.QuotaServiceServicer):
    """The routers' side of the ledger."""

    def __init__(
        self,
        batcher: Batcher,
        ledger: LedgerStore,
        accounts: AccountStore,
        watch: KeyWatch,
        balances: Balances,
        entries: Entries,
    ) -> None:
        self._batcher = batcher
        self._ledger = ledger
        self._accounts = accounts
        self._watch = watch
        self._balances = balances
        self._entries = entries
        self._streams: set[_Stream] = set()
        self._draining = False

    def drain(self) -> None:
        """Streams take nothing more and end once they have answered; routers then go elsewhere."""
        self._draining = True
        self._balances.end_streams()
        for stream in self._streams:
            stream.stop_reading()

    async def GetPrincipal(
        self, request: quota_pb2.GetPrincipalRequest, _context: Context
    ) -> quota_pb2.Principal:
        if len(request.key_hash) != 32:
            raise errors.InvalidRequest(
                "key_hash: takes the 32 bytes of a SHA-256", reason="KEY_HASH_INVALID"
            )
        key = await self._accounts.key_by_hash(request.key_hash)
        if key is None:
            raise errors.NotFound("no key has this hash", reason="KEY_UNKNOWN")
        return wire.principal(key)

    async def WatchKeys(
        self, _request: quota_pb2.WatchKeysRequest, _context: Context
    ) -> AsyncIterator[quota_pb2.WatchKeysResponse]:
        async for hashes in self._watch.changes():
            yield quota_pb2.WatchKeysResponse(changed_key_hashes=hashes)

    async def Reserve(
        self, request: quota_pb2.ReserveRequest, context: Context
    ) -> quota_pb2.ReserveResponse:
        operation = wire.parse_reserve(request)
        answer = await self._batcher.apply(operation, _left_ms(context))
        return wire.reserve_response(operation, answer)

    async def PreviewReserve(
        self, request: quota_pb2.ReserveRequest, context: Context
    ) -> quota_pb2.ReserveResponse:
        operation = wire.parse_reserve(request)
        outcome = await self._ledger.preview(Timed(operation, _left_ms(context)))
        if isinstance(outcome, errors.PenstockError):
            raise outcome
        return wire.reserve_response(operation, outcome)

    async def Extend(
        self, request: quota_pb2.ExtendRequest, context: Context
    ) -> quota_pb2.ExtendResponse:
        answer = await self._batcher.apply(wire.parse_extend(request), _left_ms(context))
        return wire.extend_response(answer)

    async def Settle(
        self, request: quota_pb2.SettleRequest, context: Context
    ) -> quota_pb2.SettleResponse:
        answer = await self._batcher.apply(wire.parse_settle(request), _left_ms(context))
        return wire.settle_response(answer)

    async def Void(
        self, request: quota_pb2.VoidRequest, context: Context
    ) -> quota_pb2.VoidResponse:
        answer = await self._batcher.apply(wire.parse_void(request), _left_ms(context))
        return wire.void_response(answer)

    async def Batch(
        self, request_iterator: AsyncIterator[quota_pb2.BatchRequest], _context: Context
    ) -> AsyncIterator[quota_pb2.BatchResponse]:
        stream = _Stream(self._batcher)
        self._streams.add(stream)
        stream.start(request_iterator)
        if self._draining:
            stream.stop_reading()
        try:
            async for response in stream.responses():
                yield response
        finally:
            self._streams.discard(stream)
            stream.abandon()

    async def GetBalance(
        self, request: quota_pb2.GetBalanceRequest, _context: Context
    ) -> quota_pb2.Balance:
        return await self._balances.get(request)

    async def WatchBalance(
        self, request: quota_pb2.WatchBalanceRequest, _context: Context
    ) -> AsyncIterator[quota_pb2.Balance]:
        async for balance in self._balances.watch(request):
            yield balance

    async def ListEntries(
        self, request: quota_pb2.ListEntriesRequest, _context: Context
    ) -> quota_pb2.ListEntriesResponse:
        return await self._entries.list(request)


class _Stream:
    """The answers of one Batch stream, gathered into messages as they come."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._ready: list[quota_pb2.OperationResult] = []
        self._unanswered = 0
        self._input_ended = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._stopping = False
        self._taking = False
        self._failure: Exception | None = None

    def start(self, requests: AsyncIterator[quota_pb2.BatchRequest]) -> None:
        self._reader = asyncio.create_task(self._read(requests))

    def stop_reading(self) -> None:
        """What was read is answered; the rest was never taken, and its sender asks again."""
        self._stopping = True
        if not self._taking:
            self._reader.cancel()

    def abandon(self) -> None:
        self._reader.cancel()

    async def _read(self, requests: AsyncIterator[quota_pb2.BatchRequest]) -> None:
        try:
            async for request in requests:
                await self._room.wait()
                self._taking = True
                await self._take(list(request.operations))
                self._taking = False
                if self._stopping:
                    return
        except Exception as error:  # noqa: BLE001 - it ends the stream: see `responses`
            self._failure = error
        finally:
            self._input_ended = True
            self._changed.set()

    async def responses(self) -> AsyncIterator[quota_pb2.BatchResponse]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            if self._ready:
                ready, self._ready = self._ready, []
                yield quota_pb2.BatchResponse(results=ready)
            if self._input_ended and not self._unanswered and not self._ready:
                return

    async def _take(self, messages: list[quota_pb2.Operation]) -> None:
        self._unanswered += len(messages)
        if self._unanswered >= STREAM_OPERATIONS_MAX:
            self._room.clear()
        if len(messages) > MESSAGE_OPERATIONS_MAX:
            self._fail(messages, _batch_too_large(len(messages)))
            return
        accepted: list[Waiting] = []
        for message in messages:
            try:
                _check_deadline(message.deadline_ms)
                operation = wire.parse_operation(message)
            except errors.PenstockError as error:
                self._answer(wire.error_result(message.operation_id, error))
                continue
            tell = self._teller(operation, message.operation_id, message.traceparent)
            accepted.append(Waiting(operation, message.deadline_ms or None, tell))
        try:
            await self._batcher.submit(accepted)
        except errors.PenstockError as error:
            for one in accepted:
                one.tell(error)
        except Exception as error:  # each operation gets an answer, whatever it is
            logger.exception("operations could not be queued")
            failure = errors.Internal(f"the ledger failed ({type(error).__name__})")
            for one in accepted:
                one.tell(failure)

    def _teller(self, operation: Operation, operation_id: int, traceparent: str) -> Tell:
        span = None
        if traceparent:
            span = operation_span(f"quota {type(operation).__name__.lower()}", traceparent)

        def tell(outcome: Outcome) -> None:
            if isinstance(outcome, errors.PenstockError):
                if span is not None:
                    span.fail(outcome)
                result = wire.error_result(operation_id, outcome)
            else:
                result = wire.result(operation_id, operation, outcome)
            if span is not None:
                span.end()
            self._answer(result)

        return tell

    def _fail(self, messages: list[quota_pb2.Operation], error: errors.PenstockError) -> None:
        for message in messages:
            self._answer(wire.error_result(message.operation_id, error))

    def _answer(self, result: quota_pb2.OperationResult) -> None:
        self._ready.append(result)
        self._unanswered -= 1
        if self._unanswered < STREAM_OPERATIONS_MAX:
            self._room.set()
        self._changed.set()


def _left_ms(context: Context) -> int | None:
    seconds = context.time_remaining()
    # Without a deadline gRPC says an infinity or a very large number of seconds.
    if seconds is None or seconds * 1000 > DEADLINE_MS_MAX:
        return None
    return int(seconds * 1000)


def _check_deadline(deadline_ms: int) -> None:
    if not 0 <= deadline_ms <= DEADLINE_MS_MAX:
        raise errors.InvalidRequest(
            f"deadline_ms: takes 0 (none) to {DEADLINE_MS_MAX} ms from now, not {deadline_ms}",
            reason="DEADLINE_INVALID",
        )


def _batch_too_large(size: int) -> errors.InvalidRequest:
    return errors.InvalidRequest(
        f"operations: {size} in one message; at most {MESSAGE_OPERATIONS_MAX}, nothing was applied",
        reason="BATCH_TOO_LARGE",
    )
