"""W3C Trace Context: `traceparent` from and to gRPC metadata, and from HTTP headers.

Only `traceparent` travels (each batched operation carries one); `tracestate`, which the standard
lets a participant drop, does not. The sampled flag says that the request is traced in detail: who
gets it opens a span.
"""

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.trace import SpanContext, TraceFlags

TRACEPARENT = "traceparent"
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
NOT_SAMPLED = TraceFlags(TraceFlags.DEFAULT)

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_LENGTH = 55
_LENGTH_MAX = 512
"""A later version may be longer, but nobody needs to parse a novel."""

_current: ContextVar[str] = ContextVar("penstock_traceparent", default="")


def parse(traceparent: str) -> SpanContext | None:
    """The remote parent; None where the text is no valid traceparent (then a new trace begins)."""
    if not _LENGTH <= len(traceparent) <= _LENGTH_MAX:
        return None
    found = _FORM.match(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    sampled = int(flags, 16) & TraceFlags.SAMPLED
    context = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True,
        trace_flags=SAMPLED if sampled else NOT_SAMPLED,
    )  # fmt: skip
    return context if context.is_valid else None


def form(trace_id: int, span_id: int, *, sampled: bool) -> str:
    return f"00-{trace_id:032x}-{span_id:016x}-0{1 if sampled else 0}"


def is_sampled(traceparent: str) -> bool:
    """Whether the request is traced in detail. Cheap: looks at one character, trusts the rest."""
    return len(traceparent) >= _LENGTH and traceparent[54] in "13579bdf"


def current_traceparent() -> str:
    """Of OpenTelemetry's current span, else of the call that this task serves, else empty.

    A request's flow does not use it: an async generator's context is its consumer's. It hands
    `RequestTrace.traceparent` and `Child.traceparent` down by hand.
    """
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        return form(context.trace_id, context.span_id, sampled=context.trace_flags.sampled)
    return _current.get()


def set_current(traceparent: str) -> None:
    """For the rest of this task. Servers call it once a call; each call has a task of its own."""
    _current.set(traceparent)


def to_metadata(traceparent: str) -> tuple[tuple[str, str], ...]:
    """What to add to the metadata of a gRPC call; nothing where there is no trace."""
    return ((TRACEPARENT, traceparent),) if traceparent else ()


def from_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The traceparent in the metadata of a gRPC call; empty where there is none that is valid."""
    for key, value in metadata or ():
        if key == TRACEPARENT and isinstance(value, str) and parse(value) is not None:
            return value
    return ""


def from_headers(headers: Mapping[str, str]) -> str:
    """The traceparent of an HTTP request (`headers` finds lower-case names, as Starlette's do)."""
    value = headers.get(TRACEPARENT, "").strip()
    return value if parse(value) is not None else ""
