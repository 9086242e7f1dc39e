"""The real OTLP receiver, in a process of its own, and services' processes for a test of traces."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.tcp import free_port

STOP_SECONDS = 15.0
START_SECONDS = 30.0


@asynccontextmanager
async def receiver(folder: Path, **variables: str) -> AsyncIterator[str]:
    """Its address, host:port; it is stopped by SIGTERM and must then end well."""
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "PENSTOCK_TRACES_STORE": str(folder),
        "PENSTOCK_TRACES_LISTEN": address,
        **variables,
    }
    async with process("penstock.traces", environment) as running:
        await serving(address, running)
        yield address
        running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_SECONDS):
            assert 0 == await running.wait()


@asynccontextmanager
async def process(
    module: str, environment: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m module`; killed at the end if it still runs."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "PENSTOCK_"))}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env={**clean, **environment}, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def serving(address: str, running: asyncio.subprocess.Process) -> None:
    """Waits until its health is SERVING; fails with its log where it dies instead."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(START_SECONDS):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), wait_for_ready=True
        )
        died = asyncio.create_task(running.wait())
        try:
            while True:
                state = asyncio.create_task(anext(aiter(watch)))
                await asyncio.wait([state, died], return_when=asyncio.FIRST_COMPLETED)
                if died.done():
                    state.cancel()
                    assert running.stderr is not None
                    raise AssertionError((await running.stderr.read()).decode())
                if (await state).status == health_pb2.HealthCheckResponse.SERVING:
                    return
        finally:
            died.cancel()
            watch.cancel()
