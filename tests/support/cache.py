"""A running cache service for tests: in this process, or as a process of its own."""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.cache.config import Config
from penstock.cache.v1.cache_pb2 import Answer, LookupRequest, StoreRequest
from penstock.cache.wiring import Cache, wire
from penstock.core.catalogue import CacheSettings
from penstock.core.channel import connect
from penstock.core.deadline import Deadline
from penstock.core.telemetry import Telemetry
from penstock.router.answers import CacheAnswers, open_stream
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_STOP,
    ROLE_ASSISTANT,
    Choice,
    ContentPart,
    Message,
    Usage,
)
from support.wait import until

TOKEN = "test-service-token"


@contextlib.asynccontextmanager
async def running_cache(
    dsn: str, telemetry: Telemetry | None = None, **settings: object
) -> AsyncIterator[Cache]:
    """A cache in this process on a free port, ready."""
    config = Config(dsn=dsn, service_token=TOKEN, listen="127.0.0.1:0", **settings)
    cache = await wire(config, telemetry or Telemetry("cache"))
    stop = asyncio.Event()
    serving = asyncio.create_task(cache.serve(stop))
    try:
        readiness = asyncio.create_task(ready(cache))
        await asyncio.wait({serving, readiness}, return_when=asyncio.FIRST_COMPLETED)
        readiness.cancel()
        if not serving.done():
            await readiness
            yield cache
    finally:
        stop.set()
        await serving


async def ready(cache: Cache) -> None:
    """Until the health service says SERVING."""
    await until(lambda: cache.server.port != 0)
    await ready_at(cache.server.address)


async def ready_at(address: str, *, want: int = health_pb2.HealthCheckResponse.SERVING) -> None:
    async with asyncio.timeout(20), connect(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), wait_for_ready=True
        )
        async for update in watch:
            if update.status == want:
                return


@dataclass
class CacheProcess:
    address: str
    process: asyncio.subprocess.Process

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def terminate(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


@contextlib.asynccontextmanager
async def cache_process(dsn: str, port: int) -> AsyncIterator[CacheProcess]:
    """`python -m penstock.cache`, ready."""
    address = f"127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "penstock.cache",
        env={
            **os.environ,
            "PENSTOCK_CACHE_DSN": dsn,
            "PENSTOCK_SERVICE_TOKEN": TOKEN,
            "PENSTOCK_CACHE_LISTEN": address,
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    running = CacheProcess(address, process)
    try:
        await ready_at(address)
        yield running
    finally:
        if process.returncode is None:
            await running.kill()


@contextlib.asynccontextmanager
async def router_side(
    address: str, settings: CacheSettings | None = None, *, patience_seconds: float = 5.0
) -> AsyncIterator[CacheAnswers]:
    """A router's own channel and stream to the cache; patient on a busy machine."""
    channel = connect(address)
    answers = CacheAnswers(
        open_stream(channel, TOKEN),
        lambda: settings or CacheSettings(),
        lookup_seconds=patience_seconds,
        acknowledge_seconds=patience_seconds,
    )
    answers.start()
    try:
        yield answers
    finally:
        await answers.drain(0.5)
        await channel.close()


def waiting_in(cache: Cache) -> int:
    """How many look-ups wait there for another one's answer."""
    return sum(len(wait.futures) for wait in cache.upkeep._waits._waits.values())


def key() -> bytes:
    return uuid.uuid4().bytes + uuid.uuid4().bytes


def answer(text: str = "four", *, finish: int = FINISH_REASON_STOP) -> Answer:
    message = Message(role=ROLE_ASSISTANT, content=[ContentPart(text=text)])
    return Answer(
        choices=[Choice(message=message, finish_reason=finish)],
        usage=Usage(prompt_tokens=5, completion_tokens=1),
        provider="local",
        model="small",
        cost_nano_usd=42,
        request_id="req_1",
    )


def text_of(found: Answer) -> str:
    return found.choices[0].message.content[0].text


def look(fingerprint: bytes, org_id: str = "org_a", **fields: object) -> LookupRequest:
    return LookupRequest(fingerprint=fingerprint, org_id=org_id, **fields)


def join(fingerprint: bytes, org_id: str = "org_a", *, wait_ms_max: int = 10_000) -> LookupRequest:
    return look(fingerprint, org_id, join_flight=True, wait_ms_max=wait_ms_max)


def keep(fingerprint: bytes, org_id: str = "org_a", **fields: object) -> StoreRequest:
    fields = {"answer": answer(), "ttl_seconds": 3600} | fields
    return StoreRequest(fingerprint=fingerprint, org_id=org_id, **fields)


def soon() -> Deadline:
    return Deadline.after(20)
