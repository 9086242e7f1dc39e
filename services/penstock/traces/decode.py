"""OTLP messages to spans, within limits: what comes from the network cannot fill the store."""

from collections.abc import Iterable, Iterator
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from penstock.traces.model import Scalar, Span, SpanEvent, Value

ATTRIBUTES_MAX: Final = 128
"""Of a span or event; OpenTelemetry's own default."""

TEXT_CHARS_MAX: Final = 65_536
"""Of a name or value: recorded prompts fit, a file does not."""

ITEMS_MAX: Final = 128
"""Of a list, and of a span's events."""


def spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """The spans of a message; one without valid ids is left out."""
    for of_resource in request.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        service = str(resource.get("service.name", "unknown"))
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                if len(span.trace_id) == 16 and len(span.span_id) == 8:
                    yield _span(span, service)


def _span(span: trace_pb2.Span, service: str) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        service=service,
        name=span.name[:TEXT_CHARS_MAX],
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
        if span.kind in trace_pb2.Span.SpanKind.values()
        else "unspecified",
        start_unix_ns=_clamp(span.start_time_unix_nano),
        end_unix_ns=_clamp(max(span.start_time_unix_nano, span.end_time_unix_nano)),
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        status_message=span.status.message[:TEXT_CHARS_MAX],
        attributes=_attributes(span.attributes),
        events=tuple(
            SpanEvent(e.name, _clamp(e.time_unix_nano), _attributes(e.attributes))
            for e in span.events[:ITEMS_MAX]
        ),
    )


def _clamp(unix_ns: int) -> int:
    # The wire has fixed64, the store signed 64 bits.
    return min(unix_ns, 2**63 - 1)


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pair in pairs:
        if len(found) >= ATTRIBUTES_MAX:
            break
        found[pair.key[:TEXT_CHARS_MAX]] = _value(pair.value)
    return found


def _value(value: AnyValue) -> Value:
    if value.WhichOneof("value") == "array_value":
        return [_scalar(item) for item in value.array_value.values[:ITEMS_MAX]]
    return _scalar(value)


def _scalar(value: AnyValue) -> Scalar:
    match value.WhichOneof("value"):
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "string_value":
            return value.string_value[:TEXT_CHARS_MAX]
        case "bytes_value":
            return value.bytes_value[: TEXT_CHARS_MAX // 2].hex()
        case _:
            return str(value)[:TEXT_CHARS_MAX]
