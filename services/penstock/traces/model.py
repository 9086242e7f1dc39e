"""A trace as it is kept and shown: spans of all services, in the order in which they began."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from penstock.core import semconv

Scalar: TypeAlias = str | bool | int | float
Value: TypeAlias = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class SpanEvent:
    name: str
    at_unix_ns: int
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """`trace_id`, `span_id` and `parent_span_id` are lower-case hex; no parent is ""."""

    trace_id: str
    span_id: str
    parent_span_id: str
    service: str
    name: str
    kind: str
    start_unix_ns: int
    end_unix_ns: int
    failed: bool = False
    status_message: str = ""
    attributes: dict[str, Value] = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()

    @property
    def is_request(self) -> bool:
        """The span of a request; services' spans only name the request that they serve."""
        return semconv.DETAILED in self.attributes

    @property
    def request_id(self) -> str:
        return str(self.attributes.get(semconv.REQUEST_ID, ""))

    @property
    def ended_by(self) -> str:
        """Of a request that was answered: "budget" where its answer ended at one, else "ok"."""
        told = self.attributes.get(semconv.FINISH_REASONS)
        is_cut = isinstance(told, list) and semconv.BUDGET in told
        return semconv.BUDGET if is_cut else "ok"

    @property
    def duration_ms(self) -> float:
        return (self.end_unix_ns - self.start_unix_ns) / 1e6


@dataclass(frozen=True, slots=True)
class Trace:
    trace_id: str
    spans: tuple[Span, ...]

    @classmethod
    def of(cls, trace_id: str, spans: Iterable[Span]) -> "Trace":
        return cls(trace_id, tuple(sorted(spans, key=lambda s: (s.start_unix_ns, -s.end_unix_ns))))

    @property
    def roots(self) -> list[Span]:
        """Spans whose parent is not here: the client's, or one that is still to come."""
        known = {span.span_id for span in self.spans}
        return [span for span in self.spans if span.parent_span_id not in known]

    def walk(self) -> Iterator[tuple[int, Span]]:
        """(depth, span), each parent before its children. Spans that form a ring are left out."""
        by_parent: dict[str, list[Span]] = {}
        for span in self.spans:
            by_parent.setdefault(span.parent_span_id, []).append(span)
        waiting = [(0, span) for span in reversed(self.roots)]
        seen: set[str] = set()
        while waiting:
            depth, span = waiting.pop()
            if span.span_id in seen:
                continue
            seen.add(span.span_id)
            yield depth, span
            waiting += [(depth + 1, s) for s in reversed(by_parent.get(span.span_id, []))]

    def of_request(self, request_id: str) -> "Trace":
        """Only the spans of one request: a client's trace may hold many."""
        tops = [s for s in self.spans if s.is_request and s.request_id == request_id]
        wanted = {s.span_id for s in tops}
        for _, span in self.walk():
            if span.parent_span_id in wanted:
                wanted.add(span.span_id)
        return Trace(self.trace_id, tuple(s for s in self.spans if s.span_id in wanted))

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; ints stay exact."""
        return asdict(self)
