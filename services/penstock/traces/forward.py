"""Passes what comes in on to another OTLP collector; one that is away costs only its copy."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from penstock.core.channel import connect

logger = logging.getLogger(__name__)

QUEUE_MAX: Final = 64
"""Messages that wait for a slow collector; each has up to about a thousand spans."""

TIMEOUT_SECONDS: Final = 10.0
"""OpenTelemetry's default for one export."""

SILENCE_SECONDS: Final = 60.0
"""Between two log lines about a collector that is away."""

CLOSE_SECONDS: Final = 2.0
"""For what waits at the end: a copy is not worth holding up the stop."""


class Forward:
    """Own queue and task; `put` never waits."""

    def __init__(self, endpoint: str, headers: str) -> None:
        parts = urlsplit(endpoint)
        self._target = parts.netloc
        credentials = grpc.ssl_channel_credentials() if parts.scheme == "https" else None
        self._channel = connect(parts.netloc, credentials)
        self._metadata = tuple(parse_headers(headers).items())
        self._queue: asyncio.Queue[ExportTraceServiceRequest] = asyncio.Queue(QUEUE_MAX)
        self._task = asyncio.create_task(self._run())
        self._told_at = -SILENCE_SECONDS
        self.lost = 0

    def put(self, request: ExportTraceServiceRequest) -> None:
        try:
            self._queue.put_nowait(request)
        except asyncio.QueueFull:
            self._lose("too slow")

    async def _run(self) -> None:
        export = TraceServiceStub(self._channel).Export  # type: ignore[no-untyped-call]  # OTLP's stubs have no types
        while True:
            request = await self._queue.get()
            try:
                await export(request, timeout=TIMEOUT_SECONDS, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                self._lose(error.code().name)
            finally:
                self._queue.task_done()

    def _lose(self, why: str) -> None:
        self.lost += 1
        now = time.monotonic()
        if now - self._told_at >= SILENCE_SECONDS:
            self._told_at = now
            logger.warning(
                "traces do not reach %s (%s; %d messages lost so far)", self._target, why, self.lost
            )

    async def close(self) -> None:
        """Sends what waits, within a short time."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._queue.join()
        except TimeoutError:
            logger.warning("%d messages of traces were not forwarded", self._queue.qsize())
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()


def parse_headers(text: str) -> Mapping[str, str]:
    """`name=value,name=value`, values percent-encoded, as in OTEL_EXPORTER_OTLP_HEADERS."""
    found = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if equals and name.strip():
            found[name.strip().lower()] = unquote(value.strip())
    return found
