"""The trace of one request: one span with events; child spans where it is traced in detail.

Children are kept as plain objects until the request ends; only then is it known whether they are
worth spans. Their ids exist from the start, so what a child hands downstream is right either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from opentelemetry.sdk.trace import Event
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from penstock.core import errors, semconv
from penstock.core.semconv import Attributes, Value
from penstock.core.telemetry_context import NOT_SAMPLED, SAMPLED, form

CHILDREN_MAX = 64
"""Of one request: all tries with their reserves and settles fit; more would be a loop."""

EVENTS_MAX = 64
"""Of one span, for the same reason."""

ATTRIBUTE_CHARS_MAX = 16_384
"""Of a text value. Only recorded prompts are ever longer."""

STATUS_CHARS_MAX = 512
"""Of the text of an error: enough for its message, too little for a body that slipped in."""

_QUOTING = (
    errors.InvalidRequest,
    errors.UpstreamFailed,
    errors.UpstreamRateLimited,
    errors.StreamBroken,
)
"""Errors whose text may quote what the client sent: their reason is recorded, their text is not."""


class Emit(Protocol):
    """Hands a finished span to the exporter."""

    def __call__(
        self, *, name: str, context: SpanContext, parent: SpanContext | None,
        attributes: Attributes, events: tuple[Event, ...], kind: SpanKind, status: Status,
        start_unix_ns: int, end_unix_ns: int,
    ) -> None: ...  # fmt: skip


@dataclass(frozen=True, slots=True)
class Worth:
    """Which requests get child spans; asked once at the start, once at the end."""

    at_start: Callable[[], bool]
    when_notable: Callable[[], bool]
    slow_seconds: float


def error_type(error: BaseException) -> str:
    """The UPPER_SNAKE reason, of an error or of the one that it carries (`AttemptFailed.error`)."""
    told = getattr(error, "error", error)
    if isinstance(told, errors.PenstockError):
        return told.reason
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    return type(error).__name__


def error_status(error: BaseException) -> Status:
    told = getattr(error, "error", error)
    text = error_type(error)
    if isinstance(told, errors.PenstockError) and not isinstance(told, _QUOTING):
        text = f"{text}: {told.message}"
    return Status(StatusCode.ERROR, text[:STATUS_CHARS_MAX])


def clip(value: Value) -> Value:
    return value[:ATTRIBUTE_CHARS_MAX] if isinstance(value, str) else value


class Recording:
    """What a span and a request's trace have in common: attributes, events, an error."""

    __slots__ = ("attributes", "end_unix_ns", "error", "events", "name", "start_unix_ns")

    def __init__(
        self, name: str, attributes: Mapping[str, Value] | None, start_unix_ns: int
    ) -> None:
        self.name = name
        self.attributes: Attributes = dict(attributes) if attributes else {}
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self.start_unix_ns = start_unix_ns
        self.end_unix_ns = 0

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Adds attributes; a None is left out."""
        for key, value in attributes.items():
            if value is not None:
                self.attributes[key] = clip(value)

    def fail(self, error: BaseException) -> None:
        """Marks it as failed, where no exception passes through (or another one does)."""
        self.error = error
        self.attributes[semconv.ERROR_TYPE] = error_type(error)

    @property
    def status(self) -> Status:
        return Status(StatusCode.UNSET) if self.error is None else error_status(self.error)


class Step(Recording):
    """A context manager: an exception that passes through marks it as failed, and goes on."""

    __slots__ = ()

    def end(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if error is not None and self.error is None and not self.end_unix_ns:
            self.fail(error)
        self.end()


class Child(Step):
    """Of a request: `with trace.child("reserve") as span: … span.traceparent … span.set(…)`."""

    __slots__ = ("_trace", "kind", "parent_span_id", "span_id")

    def __init__(
        self, trace: RequestTrace, name: str, attributes: Mapping[str, Value] | None,
        *, kind: SpanKind, parent_span_id: int, span_id: int, start_unix_ns: int,
    ) -> None:  # fmt: skip
        super().__init__(name, attributes, start_unix_ns)
        self._trace = trace
        self.kind = kind
        self.parent_span_id = parent_span_id
        self.span_id = span_id

    @property
    def traceparent(self) -> str:
        """To be handed downstream, in metadata or in a batched operation."""
        return form(self._trace.trace_id_int, self.span_id, sampled=self._trace.detailed)

    def child(
        self, name: str, attributes: Mapping[str, Value] | None = None,
        *, kind: SpanKind = SpanKind.CLIENT,
    ) -> Child:  # fmt: skip
        """A step of this step, e.g. `reserve` and `settle` within an attempt."""
        return self._trace.child(name, attributes, kind=kind, parent_span_id=self.span_id)

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        if len(self.events) < EVENTS_MAX:
            self.events.append(Event(name, attributes, self._trace.now_unix_ns()))

    def end(self) -> None:
        """Idempotent."""
        if not self.end_unix_ns:
            self.end_unix_ns = self._trace.now_unix_ns()
            self._trace.child_ended(self)


class RequestTrace(Recording):
    """One request. `finish` must be called exactly at its end (again: no effect)."""

    __slots__ = (
        "_children", "_children_count", "_emit", "_new_span_id", "_parent", "_worth",
        "detailed", "now_unix_ns", "span_id", "trace_id_int",
    )  # fmt: skip

    def __init__(
        self, name: str, attributes: Mapping[str, Value], *, parent: SpanContext | None,
        trace_id: int, new_span_id: Callable[[], int], now_unix_ns: Callable[[], int],
        worth: Worth, emit: Emit | None,
    ) -> None:  # fmt: skip
        super().__init__(name, attributes, now_unix_ns())
        self.trace_id_int = trace_id
        self.span_id = new_span_id()
        self.now_unix_ns = now_unix_ns
        self.detailed = emit is not None and worth.at_start()
        """Whether steps become spans, here and (by the sampled flag) downstream."""
        self._parent = parent
        self._new_span_id = new_span_id
        self._worth = worth
        self._emit = emit
        self._children: list[Child] = []
        self._children_count = 0

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return f"{self.trace_id_int:032x}"

    @property
    def traceparent(self) -> str:
        return form(self.trace_id_int, self.span_id, sampled=self.detailed)

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        if len(self.events) < EVENTS_MAX:
            self.events.append(Event(name, attributes, self.now_unix_ns()))

    def child(
        self, name: str, attributes: Mapping[str, Value] | None = None,
        *, kind: SpanKind = SpanKind.CLIENT, parent_span_id: int = 0,
    ) -> Child:  # fmt: skip
        return Child(
            self, name, attributes, kind=kind, parent_span_id=parent_span_id or self.span_id,
            span_id=self._new_span_id(), start_unix_ns=self.now_unix_ns(),
        )  # fmt: skip

    def detail(self) -> None:
        """From now on in detail, also downstream: called at a spill, a fallback, a refusal."""
        if not self.detailed and self._emit is not None:
            self.detailed = self._worth.when_notable()

    def finish(
        self, attributes: Mapping[str, Value | None] | None = None,
        error: BaseException | None = None,
    ) -> None:  # fmt: skip
        """Ends the request's span. Steps that still run (a late settle) follow when they end."""
        if self.end_unix_ns:
            return
        self.end_unix_ns = self.now_unix_ns()
        if attributes:
            self.set(attributes)
        if error is not None:
            self.fail(error)
        if self._emit is None:
            self._children.clear()
            return
        seconds = (self.end_unix_ns - self.start_unix_ns) / 1e9
        if self.error is not None or seconds >= self._worth.slow_seconds:
            self.detail()
        children, self._children = self._children, []
        if self.detailed:
            for child in children:
                self._emit_child(child)
        else:
            self.attributes.update(_inference(children))
            self.events += [_as_event(child) for child in children]
        self.attributes[semconv.DETAILED] = self.detailed
        self._emit(
            name=self.name, context=SpanContext(self.trace_id_int, self.span_id, False, SAMPLED),
            parent=self._parent, attributes=self.attributes, events=tuple(self.events),
            kind=SpanKind.SERVER, status=self.status,
            start_unix_ns=self.start_unix_ns, end_unix_ns=self.end_unix_ns,
        )  # fmt: skip

    def child_ended(self, child: Child) -> None:
        if self._emit is None or self._children_count >= CHILDREN_MAX:
            return
        self._children_count += 1
        if not self.end_unix_ns:
            self._children.append(child)
        elif self.detailed:
            self._emit_child(child)

    def _emit_child(self, child: Child) -> None:
        assert self._emit is not None
        self._emit(
            name=child.name, context=SpanContext(self.trace_id_int, child.span_id, False, SAMPLED),
            parent=SpanContext(self.trace_id_int, child.parent_span_id, False, NOT_SAMPLED),
            attributes=child.attributes, events=tuple(child.events), kind=child.kind,
            status=child.status, start_unix_ns=child.start_unix_ns, end_unix_ns=child.end_unix_ns,
        )  # fmt: skip


def _inference(children: list[Child]) -> Attributes:
    """GenAI attributes of a request whose attempts have no spans of their own: tokens summed."""
    found: Attributes = {}
    charged_nano_usd: list[int] = []
    for child in children:
        for key, value in child.attributes.items():
            if key == semconv.ATTEMPT_COST_NANO_USD:
                charged_nano_usd.append(int(value))  # type: ignore[arg-type]  # it is an int
            elif key.startswith("gen_ai.usage.") and isinstance(value, int):
                found[key] = int(found.get(key, 0)) + value  # type: ignore[arg-type]  # ints alone are summed
            elif key.startswith("gen_ai.") and key != semconv.REQUEST_MODEL:
                found[key] = value
    if charged_nano_usd:
        found |= semconv.cost(sum(charged_nano_usd))
    return found


def _as_event(child: Child) -> Event:
    milliseconds = round((child.end_unix_ns - child.start_unix_ns) / 1e6, 3)
    ours = {k: v for k, v in child.attributes.items() if not k.startswith("gen_ai.")}
    return Event(child.name, {**ours, semconv.DURATION_MS: milliseconds}, child.end_unix_ns)
