"""penstock.capacity.v1.CapacityService."""

from collections.abc import AsyncIterator
from typing import Any

from penstock.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from penstock.capacity.watcher import Watcher


class CapacityService(capacity_pb2_grpc.CapacityServiceServicer):
    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    async def WatchSnapshots(
        self, _request: capacity_pb2.WatchSnapshotsRequest, _context: Any
    ) -> AsyncIterator[capacity_pb2.WatchSnapshotsResponse]:
        async for snapshot in self._watcher.snapshots():
            yield capacity_pb2.WatchSnapshotsResponse(snapshot=snapshot)
