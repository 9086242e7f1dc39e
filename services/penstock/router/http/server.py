"""uvicorn inside the router's event loop: its port, its drain; signals stay the router's."""

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from penstock.core.server import DRAIN_SECONDS, PortInUse
from penstock.router.http.protocol import BoundedProtocol

logger = logging.getLogger(__name__)

BACKLOG = 2_048
CUT_OFF_SECONDS = 2
KEEP_ALIVE_SECONDS = 75
"""Longer than what load balancers keep idle connections, so that they close first."""


class _Quiet(uvicorn.Server):
    """Takes no signals: the router drains all its parts in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """One listening port.

    Attributes:
        port: The real one after `start`, where `listen` asked for :0.
        variable: What sets `listen`; named where the port is taken.
    """

    def __init__(
        self,
        listen: str,
        app: Starlette,
        *,
        variable: str = "PENSTOCK_ROUTER_HTTP_LISTEN",
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self._listen = listen
        self._variable = variable
        self.port = 0
        self._server = _Quiet(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                # The flows are cut off after the drain's time; this is for what hangs all the same.
                timeout_graceful_shutdown=math.ceil(drain_seconds) + CUT_OFF_SECONDS,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens.

        Raises:
            PortInUse: another process listens there.
        """
        listener = _bind(self._listen, self._variable)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise PortInUse(f"cannot listen on {self._listen}: the HTTP server ended")
            await asyncio.sleep(0)
        logger.info("listening on http://%s", self.address)

    @property
    def address(self) -> str:
        return f"{self._listen.rsplit(':', 1)[0]}:{self.port}"

    async def stop(self) -> None:
        """Takes no new connections; answers under way may end within the drain's time."""
        if self._task is None:
            return
        self._server.should_exit = True
        await self._task


def _bind(listen: str, variable: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], found[1])
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(found[4])
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
    except (OSError, ValueError) as error:
        raise PortInUse(
            f"cannot listen on {listen} for HTTP: {error}. Stop what uses the port, or set "
            f"{variable} to another."
        ) from None
    return listener
