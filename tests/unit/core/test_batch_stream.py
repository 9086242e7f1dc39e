"""The batching client over a real gRPC stream whose other end the test holds in its hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from penstock.cache.v1 import cache_pb2_grpc
from penstock.cache.v1.cache_pb2 import (
    BatchRequest,
    BatchResponse,
    LookupRequest,
    LookupResponse,
    Operation,
    OperationResult,
)
from penstock.core import batch_stream
from penstock.core.batch_stream import BatchStream, Wire
from penstock.core.channel import connect
from penstock.core.errors import DeadlineExceeded, Unavailable
from support.tcp import free_port
from support.wait import until


class Peer(cache_pb2_grpc.CacheServiceServicer):
    """Takes batches one by one; answers what and when the test says."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[list[Operation]] = asyncio.Queue()
        self.results: asyncio.Queue[list[OperationResult] | None] = asyncio.Queue()
        self.streams = 0

    async def Batch(self, request_iterator, context):
        self.streams += 1

        async def read() -> None:
            async for request in request_iterator:
                self.batches.put_nowait(list(request.operations))

        reader = asyncio.create_task(read())
        try:
            while (results := await self.results.get()) is not None:
                yield BatchResponse(results=results)
        finally:
            reader.cancel()

    async def next_batch(self) -> list[Operation]:
        async with asyncio.timeout(5):
            return await self.batches.get()

    def answer(self, *operations: Operation, verdict: int = LookupResponse.VERDICT_MISS) -> None:
        self.results.put_nowait(
            [
                OperationResult(operation_id=o.operation_id, lookup=LookupResponse(verdict=verdict))
                for o in operations
            ]
        )

    def end_stream(self) -> None:
        self.results.put_nowait(None)


@contextlib.asynccontextmanager
async def listening(peer: Peer, port: int) -> AsyncIterator[None]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    cache_pb2_grpc.add_CacheServiceServicer_to_server(peer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def stream_to(port: int, **settings: int) -> AsyncIterator[BatchStream]:
    channel = connect(f"127.0.0.1:{port}")
    stub = cache_pb2_grpc.CacheServiceStub(channel)
    wire = Wire(
        stub.Batch,
        lambda operations: BatchRequest(operations=operations),
        lambda message: message.results,
        cancel=lambda number: Operation(cancel_operation_id=number),
        is_interim=lambda r: r.lookup.verdict == LookupResponse.VERDICT_WAITING,
    )
    stream: BatchStream = BatchStream("peer", wire, **settings)
    try:
        yield stream
    finally:
        await stream.drain(0)
        await channel.close()


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def stream(peer: Peer) -> AsyncIterator[BatchStream]:
    port = free_port()
    async with listening(peer, port), stream_to(port) as made:
        yield made


def op(org_id: str = "a") -> Operation:
    return Operation(lookup=LookupRequest(org_id=org_id))


def calling(stream: BatchStream, operation: Operation, **times: float) -> "asyncio.Task":
    times.setdefault("timeout_seconds", 5)
    return asyncio.create_task(stream.call(operation, **times))


async def test_a_lone_operation_goes_at_once_and_alone(stream, peer) -> None:
    task = calling(stream, op())
    (sent,) = await peer.next_batch()
    peer.answer(sent)
    assert (await task).operation_id == sent.operation_id
    assert stream.in_flight == 0


async def test_what_comes_together_goes_together(stream, peer) -> None:
    tasks = [calling(stream, op(str(i))) for i in range(50)]
    batch = await peer.next_batch()
    assert [o.lookup.org_id for o in batch] == [str(i) for i in range(50)]
    peer.answer(*reversed(batch))
    results = await asyncio.gather(*tasks)
    assert [r.operation_id for r in results] == [o.operation_id for o in batch]


async def test_a_batch_is_bounded_in_operations_and_in_bytes(stream, peer, monkeypatch) -> None:
    monkeypatch.setattr(batch_stream, "BATCH_OPERATIONS_MAX", 3)
    tasks = [calling(stream, op()) for _ in range(7)]
    sizes = []
    while sum(sizes) < 7:
        batch = await peer.next_batch()
        sizes.append(len(batch))
        peer.answer(*batch)
    assert max(sizes) == 3
    await asyncio.gather(*tasks)
    monkeypatch.setattr(batch_stream, "BATCH_BYTES_MAX", 2_500)
    tasks = [calling(stream, op("x" * 1000)) for _ in range(3)]
    first = await peer.next_batch()
    second = await peer.next_batch()
    assert (len(first), len(second)) == (2, 1)
    peer.answer(*first, *second)
    await asyncio.gather(*tasks)


async def test_without_an_answer_the_time_is_over_and_the_peer_is_told(stream, peer) -> None:
    task = calling(stream, op(), timeout_seconds=0.05)
    (sent,) = await peer.next_batch()
    with pytest.raises(DeadlineExceeded) as late:
        await task
    assert late.value.reason == "PEER_TIMEOUT"
    (cancel,) = await peer.next_batch()
    assert cancel.cancel_operation_id == sent.operation_id
    assert stream.in_flight == 0


async def test_an_interim_result_grants_the_wait_and_no_more(stream, peer) -> None:
    task = calling(stream, op(), timeout_seconds=0.15, wait_seconds=0.4)
    (sent,) = await peer.next_batch()
    peer.answer(sent, verdict=LookupResponse.VERDICT_WAITING)
    done, _ = await asyncio.wait({task}, timeout=0.3)
    assert not done
    with pytest.raises(DeadlineExceeded):
        async with asyncio.timeout(1):
            await task


async def test_a_result_that_comes_as_its_caller_is_cancelled_is_given_back(stream, peer) -> None:
    """Else e.g. a flight would be led by nobody, for as long as the stream lives."""
    task = asyncio.create_task(stream.call(op(), timeout_seconds=5))
    (sent,) = await peer.next_batch()
    take = stream._take_result

    def take_and_cancel(result: OperationResult) -> None:
        take(result)
        task.cancel()

    stream._take_result = take_and_cancel
    peer.answer(sent)
    with pytest.raises(asyncio.CancelledError):
        await task
    (cancel,) = await peer.next_batch()
    assert cancel.cancel_operation_id == sent.operation_id


async def test_a_cancelled_operation_is_taken_back_or_the_peer_is_told(stream, peer) -> None:
    unsent = calling(stream, op("unsent"))
    await asyncio.sleep(0)
    unsent.cancel()
    sent_task = calling(stream, op("sent"))
    (sent,) = await peer.next_batch()
    assert sent.lookup.org_id == "sent"
    sent_task.cancel()
    (cancel,) = await peer.next_batch()
    assert cancel.cancel_operation_id == sent.operation_id
    # A result that comes all the same is nobody's.
    peer.answer(sent)
    after = calling(stream, op())
    (next_,) = await peer.next_batch()
    peer.answer(next_)
    await after
    assert stream.in_flight == 0


async def test_on_sent_tells_what_left(stream, peer) -> None:
    left: list[str] = []
    unsent = asyncio.create_task(
        stream.call(op(), timeout_seconds=5, on_sent=lambda: left.append("unsent"))
    )
    await asyncio.sleep(0)
    unsent.cancel()
    task = asyncio.create_task(
        stream.call(op(), timeout_seconds=5, on_sent=lambda: left.append("sent"))
    )
    peer.answer(*await peer.next_batch())
    await task
    assert left == ["sent"]


async def test_when_the_stream_breaks_what_is_in_flight_fails_and_a_new_one_opens(
    stream, peer
) -> None:
    tasks = [calling(stream, op()) for _ in range(3)]
    await peer.next_batch()
    peer.end_stream()
    for task in tasks:
        with pytest.raises(Unavailable) as broken:
            await task
        assert broken.value.reason == "PEER_UNAVAILABLE"
    await until(lambda: peer.streams == 2)
    task = calling(stream, op())
    peer.answer(*await peer.next_batch())
    await task


async def test_while_the_peer_is_away_operations_are_refused_at_once_and_it_is_found_again(
    peer,
) -> None:
    port = free_port()
    async with stream_to(port) as stream:
        with pytest.raises(Unavailable):
            await stream.call(op(), timeout_seconds=5)
        await until(lambda: bool(stream.down))
        with pytest.raises(Unavailable, match="Connection refused"):
            await stream.call(op(), timeout_seconds=5)
        async with listening(peer, port):
            await until(lambda: peer.streams == 1)
            task = calling(stream, op())
            peer.answer(*await peer.next_batch())
            await task
            peer.end_stream()


async def test_too_much_in_flight_is_refused(peer) -> None:
    port = free_port()
    async with listening(peer, port), stream_to(port, in_flight_max=2) as stream:
        tasks = [calling(stream, op()) for _ in range(2)]
        batch = await peer.next_batch()
        with pytest.raises(Unavailable, match="2 operations are in flight"):
            await stream.call(op(), timeout_seconds=5)
        peer.answer(*batch)
        await asyncio.gather(*tasks)
        task = calling(stream, op())
        peer.answer(*await peer.next_batch())
        await task


async def test_drain_waits_for_answers_takes_no_more_and_tells_what_is_left(stream, peer) -> None:
    answered, unanswered = calling(stream, op()), calling(stream, op())
    one, _ = await peer.next_batch()
    draining = asyncio.create_task(stream.drain(0.3))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="shutting down"):
        await stream.call(op(), timeout_seconds=5)
    peer.answer(one)
    await answered
    assert await draining == 1
    with pytest.raises(Unavailable):
        await unanswered
