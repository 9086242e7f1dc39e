"""A gRPC server as all our services run it: token, errors, health, reflection, limits, graceful
drain.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from penstock.core.channel import KEEPALIVE_MS, MESSAGE_BYTES_MAX
from penstock.core.health import Health
from penstock.core.interceptors import ErrorInterceptor, TokenInterceptor

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 20.0
"""Calls in flight may end within this after SIGTERM; less than Kubernetes' 30 s until SIGKILL."""


class PortInUse(Exception):
    """Another process listens there."""


@dataclass
class Server:
    """One listening port.

    Attributes:
        add: Registers the servicers, e.g. `lambda s: add_QuotaServiceServicer_to_server(service,
        s)`.
        services: Full names, for reflection:
        `DESCRIPTOR.services_by_name["QuotaService"].full_name`.
        token: Demanded of every call; None where the service checks its callers itself (the
        router).
    """

    listen: str
    add: Callable[[grpc.aio.Server], None]
    services: Sequence[str]
    health: Health
    token: str | None
    message_bytes_max: int = MESSAGE_BYTES_MAX
    interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    port: int = field(default=0, init=False)
    _server: grpc.aio.Server = field(init=False)

    async def start(self) -> None:
        """Listens; `port` is then the real one, where `listen` asked for :0.

        Raises:
            PortInUse: another process listens there.
        """
        # The error interceptor is first, so that it also sees what the others raise.
        chain = [ErrorInterceptor(), *self.interceptors]
        if self.token is not None:
            chain.append(TokenInterceptor(self.token))
        self._server = grpc.aio.server(
            interceptors=chain,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", self.message_bytes_max),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        self.add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self._server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection(
            [*self.services, health_name, reflection.SERVICE_NAME], self._server
        )
        try:
            self.port = self._server.add_insecure_port(self.listen)
        except RuntimeError as error:
            raise PortInUse(f"cannot listen on {self.listen}: {error}") from None
        await self.health.publish()
        await self._server.start()
        logger.info("listening on %s", self.address)

    @property
    def address(self) -> str:
        return f"{self.listen.rsplit(':', 1)[0]}:{self.port}"

    async def stop(self, grace_seconds: float = DRAIN_SECONDS) -> None:
        """New calls are refused, those in flight may end within the grace."""
        await self._server.stop(grace_seconds)


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Runs a service until SIGTERM or SIGINT; `main` gets the event that asks it to stop."""
    import uvloop

    async def with_signals() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        await main(stop)

    uvloop.run(with_signals())
