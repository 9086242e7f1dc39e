"""Passes what comes in on to the user's own collector; one that is away costs only its copy."""

import asyncio
import gzip
import logging
from collections.abc import Callable
from typing import Final, Protocol

import grpc
import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from penstock.core.channel import connect
from penstock.core.telemetry_collector import Collector, Reach

logger = logging.getLogger(__name__)

QUEUE_MAX: Final = 64
"""Messages that wait for a slow collector; each has up to about a thousand spans."""

CLOSE_SECONDS: Final = 2.0
"""For what waits at the end: a copy is not worth holding up the stop."""


class NotTaken(Exception):
    """The collector did not take a message; says why."""


class Sender(Protocol):
    async def send(self, request: ExportTraceServiceRequest) -> None:
        """Raises NotTaken."""

    async def close(self) -> None: ...


class GrpcSender:
    """OTLP over gRPC."""

    def __init__(self, collector: Collector) -> None:
        self._channel = connect(collector.target, collector.grpc_credentials())
        self._export = TraceServiceStub(self._channel).Export  # type: ignore[no-untyped-call]  # OTLP's stubs have no types
        self._metadata = tuple(collector.headers.items())
        self._timeout_seconds = collector.timeout_seconds
        self._compression = grpc.Compression.Gzip if collector.is_gzip else None

    async def send(self, request: ExportTraceServiceRequest) -> None:
        try:
            await self._export(
                request,
                timeout=self._timeout_seconds,
                metadata=self._metadata,
                compression=self._compression,
            )
        except grpc.aio.AioRpcError as error:
            raise NotTaken(f"{error.code().name}: {error.details()}") from None

    async def close(self) -> None:
        await self._channel.close()


class HttpSender:
    """OTLP over HTTP, in protobuf."""

    def __init__(self, collector: Collector) -> None:
        self._url = collector.url
        self._is_gzip = collector.is_gzip
        headers = {**collector.headers, "content-type": "application/x-protobuf"}
        if collector.is_gzip:
            headers["content-encoding"] = "gzip"
        self._client = httpx.AsyncClient(
            headers=headers, timeout=collector.timeout_seconds, verify=collector.ssl_context()
        )

    async def send(self, request: ExportTraceServiceRequest) -> None:
        body = request.SerializeToString()
        if self._is_gzip:
            body = await asyncio.to_thread(gzip.compress, body)
        try:
            reply = await self._client.post(self._url, content=body)
        except httpx.HTTPError as error:
            raise NotTaken(str(error) or type(error).__name__) from None
        if not reply.is_success:
            raise NotTaken(f"HTTP {reply.status_code}")

    async def close(self) -> None:
        await self._client.aclose()


class Forward:
    """Own queue and task; `put` never waits. `tell`: of trouble, in a sentence; "": it is over."""

    def __init__(self, collector: Collector, tell: Callable[[str], None]) -> None:
        self._sender: Sender = (
            GrpcSender(collector) if collector.protocol == "grpc" else HttpSender(collector)
        )
        self._tell = tell
        self._told = ""
        self._queue: asyncio.Queue[ExportTraceServiceRequest] = asyncio.Queue(QUEUE_MAX)
        self._task = asyncio.create_task(self._run())
        self.reach = Reach(logger, str(collector))
        """Counts messages."""

    def put(self, request: ExportTraceServiceRequest) -> None:
        try:
            self._queue.put_nowait(request)
        except asyncio.QueueFull:
            self._failed("it is too slow")

    async def _run(self) -> None:
        while True:
            request = await self._queue.get()
            try:
                await self._sender.send(request)
            except NotTaken as error:
                self._failed(str(error))
            except Exception as error:  # a fault of ours must not end all forwarding
                logger.exception("a message of traces could not be forwarded")
                self._failed(type(error).__name__)
            else:
                self.reach.worked()
                self._tell_change()
            finally:
                self._queue.task_done()

    def _failed(self, why: str) -> None:
        self.reach.failed(why, lost=1)
        self._tell_change()

    def _tell_change(self) -> None:
        if bool(self.reach.trouble) != bool(self._told):
            self._told = self.reach.trouble
            self._tell(self._told)

    async def close(self) -> None:
        """Sends what waits, within a short time."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._queue.join()
        except TimeoutError:
            logger.warning("%d messages of traces were not forwarded", self._queue.qsize())
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._sender.close()
