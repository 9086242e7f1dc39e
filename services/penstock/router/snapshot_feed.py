"""Follows capacity's snapshots. While capacity is away, the last one stays in use."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from penstock.capacity.v1 import capacity_pb2
from penstock.capacity.v1.capacity_pb2_grpc import CapacityServiceStub
from penstock.core import channel

if TYPE_CHECKING:  # the generator writes it into the stub file only
    from penstock.capacity.v1.capacity_pb2_grpc import CapacityServiceAsyncStub

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 10.0
"""Capacity sends at least every two seconds: after five misses the stream is dead."""

BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 2.0
"""A router learns of a capacity that came back within this; its load on it is one call."""


class SnapshotFeed:
    """Hands each snapshot to `apply`.

    Attributes:
        is_connected: False while capacity cannot be reached.
        first: Set once a snapshot has come.
    """

    def __init__(
        self,
        *,
        address: str,
        token: str,
        apply: Callable[[capacity_pb2.Snapshot], None],
        connect: Callable[[str], grpc.aio.Channel] = channel.connect,
        jitter: Callable[[], float] = random.random,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._address = address
        self._metadata = (channel.bearer(token),)
        self._apply = apply
        self._connect = connect
        self._jitter = jitter
        self._silence_seconds = silence_seconds
        self.is_connected = False
        self.first = asyncio.Event()

    async def run(self) -> None:
        """Runs for ever; cancel it to stop."""
        backoff = BACKOFF_SECONDS_MIN
        async with self._connect(self._address) as opened:
            stub = CapacityServiceStub(opened)
            while True:
                try:
                    await self._follow(stub)
                except (grpc.aio.AioRpcError, TimeoutError) as error:
                    self._note_lost(error)
                # A stream that worked is taken up again at once, others with growing pauses.
                backoff = BACKOFF_SECONDS_MIN if self.is_connected else backoff
                self.is_connected = False
                await asyncio.sleep(backoff * (0.5 + self._jitter() / 2))
                backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)

    async def _follow(self, stub: "CapacityServiceAsyncStub") -> None:
        call = stub.WatchSnapshots(capacity_pb2.WatchSnapshotsRequest(), metadata=self._metadata)
        try:
            while True:
                async with asyncio.timeout(self._silence_seconds):
                    message = await call.read()
                if not isinstance(message, capacity_pb2.WatchSnapshotsResponse):
                    return
                if not self.is_connected:
                    logger.info("following capacity at %s", self._address)
                self.is_connected = True
                self._apply(message.snapshot)
                self.first.set()
        finally:
            call.cancel()

    def _note_lost(self, error: grpc.aio.AioRpcError | TimeoutError) -> None:
        told = (
            f"{error.code().name}: {error.details()}"
            if isinstance(error, grpc.aio.AioRpcError)
            else f"silent for {self._silence_seconds:.0f} s"
        )
        # Once an outage, not once a try.
        log = logger.warning if self.is_connected or not self.first.is_set() else logger.debug
        log("capacity at %s is lost (%s); the last known replicas stay in use", self._address, told)
