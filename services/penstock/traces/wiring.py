"""The receiver's object graph."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    add_TraceServiceServicer_to_server,
)

from penstock.core.health import Health
from penstock.core.server import Server
from penstock.traces.config import TracesConfig
from penstock.traces.forward import Forward
from penstock.traces.service import TraceService
from penstock.traces.store import Store

DRAIN_SECONDS = 5.0
"""Other services send their last spans while they stop; `penstock up` stops this process last."""


async def serve(config: TracesConfig, stop: asyncio.Event) -> None:
    """Receives until `stop`.

    Raises:
        StoreError: the folder cannot be used.
        PortInUse: another process listens there.
    """
    health = Health(["store"])
    store = Store(config.store, config.keep)
    forward = Forward(config.forward, store.tell_trouble) if config.forward else None
    writer = ThreadPoolExecutor(1, thread_name_prefix="traces")
    service = TraceService(store, writer, forward)
    server = Server(
        listen=config.listen,
        add=lambda s: add_TraceServiceServicer_to_server(service, s),  # type: ignore[no-untyped-call]  # OTLP's stubs have no types
        services=[trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"].full_name],
        health=health,
        token=config.token,
    )
    try:
        await server.start()
        await health.set("store", ok=True)
        await stop.wait()
        await health.set("store", ok=False)
        await server.stop(DRAIN_SECONDS)
    finally:
        if forward is not None:
            await forward.close()
        writer.shutdown()
        store.close()
