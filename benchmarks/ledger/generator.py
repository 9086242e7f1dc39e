"""Load on the batched streams of quota processes, from a process of its own."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle

import grpc
import uvloop

from benchmarks.ledger.messages import Pair, pairs_of, reserve_id
from penstock.core.channel import bearer, connect
from penstock.quota.v1 import quota_pb2

BATCH_METHOD = "/penstock.quota.v1.QuotaService/Batch"
MESSAGE_OPERATIONS = 256
TRAINS_PER_STREAM = 4
"""Messages of one stream that are under way at once."""
TICK_SECONDS = 0.001
"""Of the open loop: what is due by then leaves in one message."""
HOLD_SECONDS = 0.05
"""From a reserve to its settle, in the open loop: the time that a short answer takes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.

    Attributes:
        addresses: Of the quota processes; streams are dealt out to them in turn.
        token: The routers' bearer.
        streams: How many in all.
        key_ids: Pairs fall on them in turn.
        pairs: How many in all.
        provider: Of every reserve.
        pairs_per_second: Of the open loop.
    """

    addresses: Sequence[str]
    token: str
    streams: int
    key_ids: Sequence[int]
    pairs: int
    provider: str
    pairs_per_second: float = 0.0


@dataclass(slots=True)
class Told:
    """What came of it: how long it took, its own CPU time, and each operation's latency."""

    pairs: int
    seconds: float
    cpu_seconds: float
    latencies_seconds: list[float] = field(default_factory=list)


class Failed(Exception):
    """An operation was refused: there is nothing to measure."""


def closed_loop(load: Load) -> Told:
    """As fast as answers come: each stream has a few trains of messages, reserves then settles."""
    return uvloop.run(_closed_loop(load))


def open_loop(load: Load) -> Told:
    """At a given rate, whatever the answers do; latency counts from when it was to be sent."""
    return uvloop.run(_open_loop(load))


async def _closed_loop(load: Load) -> Told:
    pairs = pairs_of(load.key_ids, load.pairs, load.provider)
    messages = [
        pairs[start : start + MESSAGE_OPERATIONS]
        for start in range(0, len(pairs), MESSAGE_OPERATIONS)
    ]
    waiting = iter(messages)
    watch = _StopWatch()

    async def work(streams: "list[_Stream]") -> None:
        watch.start()
        await asyncio.gather(*(_run_trains(stream, waiting) for stream in streams))
        watch.stop()

    await _drive(load, work)
    return Told(len(pairs), watch.seconds, watch.cpu_seconds)


async def _run_trains(stream: "_Stream", waiting: Iterator[list[Pair]]) -> None:
    async def train() -> None:
        for pairs in waiting:
            await stream.answered([p.reserve for p in pairs], [reserve_id(p.number) for p in pairs])
            await stream.answered(
                [p.settle for p in pairs], [reserve_id(p.number) + 1 for p in pairs]
            )

    await asyncio.gather(*(train() for _ in range(TRAINS_PER_STREAM)))


async def _open_loop(load: Load) -> Told:
    pairs = pairs_of(load.key_ids, load.pairs, load.provider)
    watch = _StopWatch()
    arrivals: list[_Arrivals] = []

    async def work(streams: "list[_Stream]") -> None:
        arrivals.extend(_Arrivals(stream) for stream in streams)
        began = watch.start()
        for pair, one in zip(pairs, cycle(arrivals), strict=False):
            one.reserves.append((began + pair.number / load.pairs_per_second, pair))
        await asyncio.gather(*(one.run() for one in arrivals))
        watch.stop()

    await _drive(load, work)
    latencies = [latency for one in arrivals for latency in one.latencies_seconds]
    return Told(len(pairs), watch.seconds, watch.cpu_seconds, latencies)


class _StopWatch:
    """Of the wall's time and of this process's."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    def start(self) -> float:
        """The monotonic time."""
        self._cpu_began = time.process_time()
        self._began = time.perf_counter()
        return self._began

    def stop(self) -> None:
        self.seconds = time.perf_counter() - self._began
        self.cpu_seconds = time.process_time() - self._cpu_began


class _Arrivals:
    """Of one stream: what is to be sent when, soonest first."""

    def __init__(self, stream: "_Stream") -> None:
        self._stream = stream
        self.reserves: deque[tuple[float, Pair]] = deque()
        self.settles: deque[tuple[float, Pair]] = deque()
        self.latencies_seconds: list[float] = []

    async def run(self) -> None:
        """Returns when everything is answered."""
        answers = 2 * len(self.reserves)
        while len(self.latencies_seconds) < answers:
            now = time.perf_counter()
            parts = [self._send_reserve(*one) for one in _due(self.reserves, now)]
            parts += [self._send_settle(*one) for one in _due(self.settles, now)]
            if parts:
                await self._stream.send(parts)
            await asyncio.sleep(TICK_SECONDS)

    def _send_reserve(self, due: float, pair: Pair) -> bytes:
        def hear() -> None:
            now = time.perf_counter()
            self.latencies_seconds.append(now - due)
            self.settles.append((now + HOLD_SECONDS, pair))

        self._stream.expect(reserve_id(pair.number), hear)
        return pair.reserve

    def _send_settle(self, due: float, pair: Pair) -> bytes:
        def hear() -> None:
            self.latencies_seconds.append(time.perf_counter() - due)

        self._stream.expect(reserve_id(pair.number) + 1, hear)
        return pair.settle


def _due(queue: deque[tuple[float, Pair]], now: float) -> Iterator[tuple[float, Pair]]:
    while queue and queue[0][0] <= now:
        yield queue.popleft()


class _Stream:
    """One Batch call whose requests are bytes."""

    def __init__(self, call: "grpc.aio.StreamStreamCall[bytes, quota_pb2.BatchResponse]") -> None:
        self._call = call
        self._hears: dict[int, Callable[[], None]] = {}
        # A stream takes one write at a time.
        self._writing = asyncio.Lock()

    def expect(self, operation_id: int, hear: Callable[[], None]) -> None:
        self._hears[operation_id] = hear

    async def send(self, parts: Sequence[bytes]) -> None:
        async with self._writing:
            await self._call.write(b"".join(parts))

    async def end(self) -> None:
        """Nothing more is sent; the peer ends it once all is answered."""
        await self._call.done_writing()

    def cancel(self) -> None:
        self._call.cancel()

    async def answered(self, parts: Sequence[bytes], operation_ids: Sequence[int]) -> None:
        """Sends them in one message; returns when each has its answer."""
        left = len(operation_ids)
        done = asyncio.Event()

        def hear() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        for operation_id in operation_ids:
            self._hears[operation_id] = hear
        await self.send(parts)
        await done.wait()

    async def read(self) -> None:
        """Until the stream ends. Raises Failed at the first refusal."""
        async for response in self._call:
            for result in response.results:
                if result.HasField("error"):
                    raise Failed(f"{result.error.reason}: {result.error.message}")
                self._hears.pop(result.operation_id)()


def _as_it_is(message: bytes) -> bytes:
    return message


async def _drive(load: Load, work: Callable[["list[_Stream]"], Awaitable[None]]) -> None:
    """Opens the streams, does the work on them, ends them. Raises Failed at the first refusal."""
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(connect(address))
            for _, address in zip(range(load.streams), cycle(load.addresses), strict=False)
        ]
        streams = [_Stream(_call(channel, load.token)) for channel in channels]
        tasks = [asyncio.create_task(stream.read()) for stream in streams]
        worker = asyncio.create_task(_work_and_end(streams, work))
        try:
            await asyncio.gather(worker, *tasks)
        finally:
            # A reader ends with its call; to cancel the reader itself is not enough for gRPC.
            for stream in streams:
                stream.cancel()
            worker.cancel()
            await asyncio.gather(worker, *tasks, return_exceptions=True)


async def _work_and_end(
    streams: "list[_Stream]", work: Callable[["list[_Stream]"], Awaitable[None]]
) -> None:
    await work(streams)
    for stream in streams:
        await stream.end()


def _call(
    channel: grpc.aio.Channel, token: str
) -> "grpc.aio.StreamStreamCall[bytes, quota_pb2.BatchResponse]":
    return channel.stream_stream(
        BATCH_METHOD,
        request_serializer=_as_it_is,
        response_deserializer=quota_pb2.BatchResponse.FromString,
    )(metadata=(bearer(token),))
