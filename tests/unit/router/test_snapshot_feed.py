"""Following capacity: by real gRPC to a server that comes, goes and falls silent."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from penstock.capacity.v1 import capacity_pb2
from penstock.capacity.v1.capacity_pb2_grpc import (
    CapacityServiceServicer,
    add_CapacityServiceServicer_to_server,
)
from penstock.router.snapshot_feed import SnapshotFeed


class FakeCapacity(CapacityServiceServicer):
    """Sends what lies in `snapshots`, then holds the stream open."""

    def __init__(self) -> None:
        self.address = "127.0.0.1:0"
        self.sequence = 0
        self.watchers = 0
        self.tokens: list[Any] = []

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_CapacityServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def WatchSnapshots(
        self, request: capacity_pb2.WatchSnapshotsRequest, context: Any
    ) -> AsyncGenerator[capacity_pb2.WatchSnapshotsResponse, None]:
        self.watchers += 1
        self.tokens.append(dict(context.invocation_metadata())["authorization"])
        self.sequence += 1
        snapshot = capacity_pb2.Snapshot(sequence=self.sequence)
        yield capacity_pb2.WatchSnapshotsResponse(snapshot=snapshot)
        await asyncio.Event().wait()


class Following:
    """A feed that runs, and what it handed on."""

    def __init__(self, address: str, silence_seconds: float) -> None:
        self.got: asyncio.Queue[int] = asyncio.Queue()
        self.failed = asyncio.Event()
        self.feed = SnapshotFeed(
            address=address,
            token="service-secret",
            apply=lambda s: self.got.put_nowait(s.sequence),
            jitter=self._note_failure,
            silence_seconds=silence_seconds,
        )
        self.task = asyncio.create_task(self.feed.run())

    def _note_failure(self) -> float:
        self.failed.set()
        return 0.0

    async def next(self) -> int:
        return await asyncio.wait_for(self.got.get(), 10)


@pytest.fixture
async def capacity() -> AsyncIterator[FakeCapacity]:
    capacity = FakeCapacity()
    await capacity.start()
    yield capacity
    await capacity.stop()


@pytest.fixture
async def follow() -> AsyncIterator[Any]:
    followed: list[Following] = []

    def start(address: str, silence_seconds: float = 10) -> Following:
        followed.append(Following(address, silence_seconds))
        return followed[-1]

    yield start
    for one in followed:
        one.task.cancel()
        with suppress(asyncio.CancelledError):
            await one.task


async def test_snapshots_are_handed_on_and_the_service_token_is_shown(
    capacity: FakeCapacity, follow: Any
) -> None:
    following = follow(capacity.address)
    assert not following.feed.first.is_set()
    assert await following.next() == 1
    assert following.feed.first.is_set()
    assert following.feed.is_connected
    assert capacity.tokens == ["Bearer service-secret"]


async def test_a_capacity_that_was_restarted_is_followed_again(
    capacity: FakeCapacity, follow: Any
) -> None:
    following = follow(capacity.address)
    await following.next()
    await capacity.stop()
    await capacity.start()
    assert await following.next() == 2


async def test_a_capacity_that_starts_later_is_found(capacity: FakeCapacity, follow: Any) -> None:
    await capacity.stop()
    following = follow(capacity.address)
    await following.failed.wait()
    assert not following.feed.is_connected
    await capacity.start()
    assert await following.next() == 1


async def test_a_stream_that_falls_silent_is_opened_anew(
    capacity: FakeCapacity, follow: Any
) -> None:
    following = follow(capacity.address, silence_seconds=0.2)
    assert await following.next() == 1
    assert await following.next() == 2
