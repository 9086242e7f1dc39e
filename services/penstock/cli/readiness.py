"""When a child is ready: it says so by gRPC health, by a file, by HTTP, or by ending well."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from watchfiles import awatch

from penstock.core.channel import connect

POLL_SECONDS = 0.1
"""For the one server here that tells nothing by itself: llama.cpp's HTTP listener."""

HTTP_SECONDS = 5.0
"""For it to answer one look."""

SERVING = "serving"
"""How a healthy part is called."""

WATCH_DEBOUNCE_MS = 50
WATCH_WAKE_MS = 500
"""A file that appeared before the watch began is found at the first waking."""


class Readiness(Protocol):
    async def wait(self) -> None:
        """Returns when the child is ready; never raises for one that is not yet."""


@dataclass(frozen=True, slots=True)
class GrpcHealth:
    """`grpc.health.v1.Health/Watch` says SERVING."""

    address: str

    async def wait(self) -> None:
        async with connect(self.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                call = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
                try:
                    async for update in call:
                        if update.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                except grpc.aio.AioRpcError:
                    # It listens, and went away in the middle: its end is told by its exit status.
                    await asyncio.sleep(POLL_SECONDS)
                finally:
                    call.cancel()


@dataclass(frozen=True, slots=True)
class ReadyFile:
    """The child writes a file. It is removed before the child starts."""

    path: Path

    async def wait(self) -> None:
        watch = awatch(
            self.path.parent,
            debounce=WATCH_DEBOUNCE_MS,
            rust_timeout=WATCH_WAKE_MS,
            yield_on_timeout=True,
            recursive=False,
        )
        async for _ in watch:
            if self.path.exists():
                return


@dataclass(frozen=True, slots=True)
class HttpOk:
    """GET answers 200."""

    url: str

    async def wait(self) -> None:
        while True:
            if await answers(self.url, timeout_seconds=HTTP_SECONDS) == SERVING:
                return
            await asyncio.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class EndsWell:
    """A task, not a service: ready when it has ended with status 0."""

    async def wait(self) -> None:
        await asyncio.Event().wait()


async def answers(url: str, *, timeout_seconds: float) -> str:
    """One look by HTTP: as `is_serving`."""
    async with httpx.AsyncClient(trust_env=False, timeout=timeout_seconds) as client:
        try:
            reply = await client.get(url)
        except httpx.TimeoutException:
            return "no answer"
        except httpx.HTTPError:
            return "unreachable"
    return SERVING if reply.is_success else "not serving"


async def is_serving(address: str, *, timeout_seconds: float) -> str:
    """One look: "serving", "not serving", or why it cannot be reached."""
    async with connect(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            return "unreachable" if error.code() == grpc.StatusCode.UNAVAILABLE else "no answer"
    serving = reply.status == health_pb2.HealthCheckResponse.SERVING
    return SERVING if serving else "not serving"
