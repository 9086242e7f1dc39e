"""OTLP's TraceService: keeps what comes, and passes it on."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer

from penstock.core.errors import Unavailable
from penstock.traces.decode import spans
from penstock.traces.forward import Forward
from penstock.traces.store import Store, StoreError


class TraceService(TraceServiceServicer):
    """`writer`: a pool of one thread, so that the store has one writer and the loop never waits."""

    def __init__(self, store: Store, writer: ThreadPoolExecutor, forward: Forward | None) -> None:
        self._store = store
        self._writer = writer
        self._forward = forward

    async def Export(
        self, request: otlp.ExportTraceServiceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> otlp.ExportTraceServiceResponse:
        del context
        if self._forward is not None:
            self._forward.put(request)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writer, self._keep, request)
        except StoreError as error:
            raise Unavailable(str(error), reason="TRACE_STORE_UNAVAILABLE") from None
        return otlp.ExportTraceServiceResponse()

    def _keep(self, request: otlp.ExportTraceServiceRequest) -> None:
        self._store.add(list(spans(request)))
