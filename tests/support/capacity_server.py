"""A capacity service behind a real gRPC port that tells what the test puts into it."""

import asyncio
from collections.abc import AsyncIterator

import grpc

from penstock.capacity.v1.capacity_pb2 import (
    DESCRIPTOR,
    Snapshot,
    WatchSnapshotsRequest,
    WatchSnapshotsResponse,
)
from penstock.capacity.v1.capacity_pb2_grpc import (
    CapacityServiceServicer,
    add_CapacityServiceServicer_to_server,
)
from penstock.core.health import Health
from penstock.core.server import Server


class FakeCapacity(CapacityServiceServicer):
    def __init__(self) -> None:
        self.snapshot = Snapshot(sequence=1, ray_reachable=True)

    async def WatchSnapshots(
        self, request: WatchSnapshotsRequest, context: object
    ) -> AsyncIterator[WatchSnapshotsResponse]:
        yield WatchSnapshotsResponse(snapshot=self.snapshot)
        await asyncio.Event().wait()

    async def start(self, token: str) -> str:
        """Listens; its address."""

        def add(server: grpc.aio.Server) -> None:
            add_CapacityServiceServicer_to_server(self, server)

        self._server = Server(
            listen="127.0.0.1:0",
            add=add,
            services=[DESCRIPTOR.services_by_name["CapacityService"].full_name],
            health=Health([]),
            token=token,
        )
        await self._server.start()
        return self._server.address

    async def stop(self) -> None:
        await self._server.stop(0)
