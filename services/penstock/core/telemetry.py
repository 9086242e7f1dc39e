"""Traces: one span a request, child spans where a request is traced in detail, exported by OTLP.

A service's `__main__` or `wiring`:

    telemetry = setup("quota")              # exports where OTEL_EXPORTER_OTLP_ENDPOINT is set
    Server(..., interceptors=[TraceInterceptor(telemetry)])   # core/telemetry_server.py
    ...
    await telemetry.aclose()                # after the drain: sends the last spans, at most 3 s

The router's flow (no context variables: an async generator runs in its consumer's context):

    trace = telemetry.request("chat auto", {semconv.REQUEST_ID: id}, parent=client_traceparent)
    with trace.child("reserve", {...}) as span:          # exceptions mark it and go on
        await ledger.reserve(..., traceparent=span.traceparent)
        span.set({semconv.RESERVATION_ID: ...})
    trace.detail()              # at a spill, a fallback, a refusal: from now on in detail
    trace.finish({semconv.COST_NANO_USD: ...}, error=None)      # once, at the very end
    # `trace.trace_id` is for the receipt. An attempt: `child("attempt local", {PROVIDER: …})`, and
    # at its settlement `span.set(semconv.charged(...))`. `span.child(...)` nests.

A service that applies batched operations, each with a traceparent of its own:

    with operation_span("quota.reserve", operation.traceparent) as span:
        answer = ...                        # an exception marks the span and goes on
        span.set({semconv.RESERVATION_ID: ...})
    # Where many operations share one step: a span for each, and `span.end()` after the step.
    # A traceparent that is empty, faulty or not sampled, or no collector: an object that does
    # nothing (under a microsecond). `span.traceparent` goes further downstream; unsampled it is
    # the one that came in. Attributes are only worth computing `if span.recording`.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status

from penstock.core import telemetry_export
from penstock.core.sampling import TokenBucket
from penstock.core.semconv import Attributes, Value
from penstock.core.telemetry_collector import collector
from penstock.core.telemetry_context import (
    current_traceparent,
    from_metadata,
    is_sampled,
    parse,
    to_metadata,
)
from penstock.core.telemetry_export import SHUTDOWN_SECONDS, Export, QuietExporter
from penstock.core.telemetry_operation import NOTHING, Nothing, OperationSpan, Unsampled
from penstock.core.telemetry_request import Child, RequestTrace, Worth

__all__ = [
    "Child",
    "Nothing",
    "OperationSpan",
    "RequestTrace",
    "Telemetry",
    "current_traceparent",
    "from_metadata",
    "operation_span",
    "setup",
    "to_metadata",
]

DETAILED_PER_SECOND: Final = 20.0
"""Requests a second with child spans, whatever they are: five spans cost 0.37 ms."""

NOTABLE_PER_SECOND: Final = 100.0
"""More for errors, refusals, spills and slow requests: an outage must not become a span storm."""

SLOW_SECONDS: Final = 10.0
"""A request that takes longer is worth its child spans."""

SCOPE: Final = InstrumentationScope("penstock")


class Telemetry:
    """A process's traces. Without an exporter ids and traceparents work, and nothing is kept."""

    def __init__(
        self,
        service: str,
        exporter: SpanExporter | None = None,
        *,
        detailed_per_second: float = DETAILED_PER_SECOND,
        notable_per_second: float = NOTABLE_PER_SECOND,
        slow_seconds: float = SLOW_SECONDS,
        ids: IdGenerator | None = None,
        now_unix_ns: Callable[[], int] = time.time_ns,
        monotonic_seconds: Callable[[], float] = time.monotonic,
        export: Export | None = None,
    ) -> None:
        self._ids = ids or RandomIdGenerator()
        self._now_unix_ns = now_unix_ns
        at_start = TokenBucket(detailed_per_second, detailed_per_second, monotonic_seconds)
        notable = TokenBucket(notable_per_second, notable_per_second, monotonic_seconds)
        self._worth = Worth(at_start.take, notable.take, slow_seconds)
        self._resource = _resource(service)
        if export is None and exporter is not None:
            export = Export(QuietExporter(exporter, "the exporter"))
        self.export = export

    def request(
        self, name: str, attributes: Mapping[str, Value] | None = None, *, parent: str = ""
    ) -> RequestTrace:
        """Begins the trace of a request; `parent` is the client's traceparent.

        A client's trace id is kept, its sampled flag is not: our own rate decides on child spans.
        """
        context = parse(parent) if parent else None
        return RequestTrace(
            name,
            attributes or {},
            parent=context,
            trace_id=context.trace_id if context else self._ids.generate_trace_id(),
            new_span_id=self._ids.generate_span_id,
            now_unix_ns=self._now_unix_ns,
            worth=self._worth,
            emit=self.emit if self.export is not None else None,
        )

    def operation_span(
        self,
        name: str,
        traceparent: str,
        attributes: Mapping[str, Value] | None = None,
        *,
        kind: SpanKind = SpanKind.SERVER,
    ) -> OperationSpan | Nothing:
        """A span for an operation that serves another process's request, if that is detailed."""
        if self.export is None or not is_sampled(traceparent):
            return Unsampled(traceparent) if traceparent else NOTHING
        parent = parse(traceparent)
        if parent is None:
            return NOTHING
        return OperationSpan(
            name, attributes, parent=parent, span_id=self._ids.generate_span_id(),
            now_unix_ns=self._now_unix_ns, emit=self.emit, kind=kind,
        )  # fmt: skip

    def emit(
        self,
        *,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: Attributes,
        events: tuple[Event, ...],
        kind: SpanKind,
        status: Status,
        start_unix_ns: int,
        end_unix_ns: int,
    ) -> None:
        """Puts a finished span into the export's queue; never waits, never fails."""
        if self.export is None:
            return
        self.export.processor.on_end(
            ReadableSpan(
                name=name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                events=events,
                kind=kind,
                status=status,
                start_time=start_unix_ns,
                end_time=end_unix_ns,
                instrumentation_scope=SCOPE,
            )
        )

    def flush(self) -> bool:
        """Sends what waits, in this thread; True where nothing was lost since the start."""
        if self.export is None:
            return True
        return self.export.flush() and self.export.exporter.lost == 0

    def shutdown(self, timeout_seconds: float = SHUTDOWN_SECONDS) -> None:
        """Sends what waits, within the time-out; blocking. In a loop use `aclose`."""
        if self.export is not None:
            self.export.shutdown(timeout_seconds)

    async def aclose(self, timeout_seconds: float = SHUTDOWN_SECONDS) -> None:
        await asyncio.to_thread(self.shutdown, timeout_seconds)


def _resource(service: str) -> Resource:
    try:
        release = version("penstock")
    except PackageNotFoundError:
        release = "unknown"
    # Our name wins over OTEL_SERVICE_NAME: all services of a machine share one environment.
    return Resource.create(
        {
            "service.name": f"penstock-{service}",
            "service.namespace": "penstock",
            "service.version": release,
            "service.instance.id": str(uuid.uuid4()),
        }
    )


_process = Telemetry("unconfigured")


def setup(service: str) -> Telemetry:
    """This process's telemetry; called once. Exports only where an endpoint is set.

    Raises:
        ConfigError: the variables that name the collector are faulty.
    """
    global _process  # noqa: PLW0603 - one process, one export; `operation_span` below reads it
    found = collector(os.environ)
    export = telemetry_export.otlp(found) if found else None
    _process = Telemetry(service, export=export)
    return _process


def operation_span(
    name: str,
    traceparent: str,
    attributes: Mapping[str, Value] | None = None,
    *,
    kind: SpanKind = SpanKind.SERVER,
) -> OperationSpan | Nothing:
    """`Telemetry.operation_span` of this process's telemetry; does nothing before `setup`."""
    return _process.operation_span(name, traceparent, attributes, kind=kind)
