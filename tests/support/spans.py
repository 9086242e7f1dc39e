"""OTLP messages and spans for tests of the trace store."""

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from penstock.core import semconv
from penstock.traces.model import Span, SpanEvent


def span(trace: int, number: int, parent: int = 0, **changes) -> Span:
    """Ids from small numbers: trace 7's span 2 is a child of its span 1."""
    settings = {
        "trace_id": f"{trace:032x}",
        "span_id": f"{trace:08x}{number:08x}",
        "parent_span_id": f"{trace:08x}{parent:08x}" if parent else "",
        "service": "penstock-router",
        "name": f"span {number}",
        "kind": "client",
        "start_unix_ns": number * 1_000_000,
        "end_unix_ns": number * 1_000_000 + 500_000,
    }
    return Span(**(settings | changes))


def request_span(trace: int, number: int, request_id: str, **changes) -> Span:
    told = {semconv.REQUEST_ID: request_id, semconv.DETAILED: True}
    changes["attributes"] = told | changes.get("attributes", {})
    return span(trace, number, **({"kind": "server"} | changes))


def event(name: str, at_unix_ns: int, **attributes) -> SpanEvent:
    return SpanEvent(name, at_unix_ns, attributes)


def message(service: str = "penstock-router", **fields) -> ExportTraceServiceRequest:
    """An OTLP message with one span."""
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.append(
        KeyValue(key="service.name", value=AnyValue(string_value=service))
    )
    of_resource.scope_spans.add().spans.add(
        **({"trace_id": b"\1" * 16, "span_id": b"\2" * 8, "name": "s"} | fields)
    )
    return request
