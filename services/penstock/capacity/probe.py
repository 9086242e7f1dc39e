"""Asks a replica how it is, by its own Stats."""

from typing import Protocol

import grpc

from penstock.core.channel import bearer, connect
from penstock.local.v1 import local_pb2, local_pb2_grpc

PROBE_SECONDS = 1.0
"""Stats takes a few milliseconds; on a busy machine a probe may be missed (see `snapshot`)."""


class Probe(Protocol):
    async def stats(self, address: str, application: str) -> local_pb2.StatsResponse | None:
        """None: no answer in time, or an error."""

    async def forget(self, address: str) -> None:
        """The replica is gone: its connection is closed."""


class GrpcProbe:
    """Keeps one connection to each replica."""

    def __init__(self, router_token: str) -> None:
        self._token = bearer(router_token)
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def stats(self, address: str, application: str) -> local_pb2.StatsResponse | None:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = connect(address)
        stub = local_pb2_grpc.LocalServiceStub(channel)
        try:
            return await stub.Stats(
                local_pb2.StatsRequest(),
                metadata=(("application", application), self._token),
                timeout=PROBE_SECONDS,
            )
        except grpc.aio.AioRpcError:
            return None

    async def forget(self, address: str) -> None:
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        for address in list(self._channels):
            await self.forget(address)
