"""A server interceptor: opens a span around each call whose request is traced in detail."""

from __future__ import annotations

from typing import Any

import grpc

from penstock.core.interceptors import OPEN_METHODS, Continuation, Handler, rebuilt
from penstock.core.telemetry import Nothing, OperationSpan, Telemetry, from_metadata
from penstock.core.telemetry_context import set_current


class TraceInterceptor(grpc.aio.ServerInterceptor):
    """The span `<service>/<method>`, child of the caller's; within, `current_traceparent()` is its.

    Not for the router's public port, whose flow makes the request's span. A stream of batches has
    no traceparent (each operation has its own) and passes untouched.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(OPEN_METHODS):
            return handler
        traceparent = from_metadata(handler_call_details.invocation_metadata)
        if not traceparent:
            return handler
        span = self._telemetry.operation_span(method.lstrip("/"), traceparent)
        return _traced(handler, span)


def _traced(handler: Any, span: OperationSpan | Nothing) -> Handler:
    inner_stream = handler.stream_stream or handler.unary_stream
    inner = handler.stream_unary or handler.unary_unary

    async def stream(request: Any, context: Any) -> Any:
        set_current(span.traceparent)
        with span:
            async for reply in inner_stream(request, context):
                yield reply

    async def unary(request: Any, context: Any) -> Any:
        set_current(span.traceparent)
        with span:
            return await inner(request, context)

    return rebuilt(handler, unary=unary, stream=stream)
