"""Both listening ports over one `Front`: start, and the drain."""

import asyncio

import grpc

from penstock.core.health import Health
from penstock.core.server import DRAIN_SECONDS, Server
from penstock.router.front import Front
from penstock.router.http.app import Api
from penstock.router.http.server import HttpServer
from penstock.router.service import RouterService
from penstock.router.v1 import router_pb2, router_pb2_grpc

ACCEPTING = "accepting"
HTTP = "http"

MESSAGE_SLACK = 2
"""The gRPC port takes messages so many times over the limit, for the error to come from us: it then
names the limit and the remedy, where gRPC's own does not."""

STATUS_MARGIN_SECONDS = 0.5
"""gRPC's grace is longer than the flows' by this: the last of them can still say how they ended."""


class Fronts:
    """gRPC and HTTP."""

    def __init__(self, front: Front, health: Health, *, grpc_listen: str, http_listen: str) -> None:
        self._front = front
        self._health = health

        def add(server: grpc.aio.Server) -> None:
            router_pb2_grpc.add_RouterServiceServicer_to_server(RouterService(front), server)

        self.grpc = Server(
            listen=grpc_listen,
            add=add,
            services=[router_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name],
            health=health,
            token=None,
            message_bytes_max=front.catalogue().limits.request_bytes_max * MESSAGE_SLACK,
        )
        self.http = HttpServer(http_listen, Api(front, health).app())

    async def start(self) -> None:
        """Listens on both.

        Raises:
            PortInUse: one is taken; the other is closed again.
        """
        await self.grpc.start()
        try:
            await self.http.start()
        except BaseException:
            await self.grpc.stop(0)
            raise
        await self._health.set(HTTP, ok=True)
        await self._health.set(ACCEPTING, ok=True)

    async def drain(self, grace_seconds: float = DRAIN_SECONDS) -> None:
        """Unready at once, nothing new; what is under way may end within the grace."""
        await self._health.set(ACCEPTING, ok=False)
        await asyncio.gather(
            self._front.registry.drain(grace_seconds),
            self.grpc.stop(grace_seconds + STATUS_MARGIN_SECONDS),
            self.http.stop(),
        )
