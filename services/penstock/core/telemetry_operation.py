"""The span of an operation that serves another process's request; nothing where not detailed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from opentelemetry.sdk.trace import Event
from opentelemetry.trace import SpanContext, SpanKind

from penstock.core.semconv import Value
from penstock.core.telemetry_context import SAMPLED, form
from penstock.core.telemetry_request import EVENTS_MAX, Emit, Step


class Nothing:
    """Looks like `OperationSpan` and does nothing."""

    __slots__ = ()
    recording = False

    @property
    def traceparent(self) -> str:
        return ""

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        pass

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        pass

    def end(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Unsampled(Nothing):
    """Hands the traceparent on as it came."""

    __slots__ = ("_traceparent",)

    def __init__(self, traceparent: str) -> None:
        self._traceparent = traceparent

    @property
    def traceparent(self) -> str:
        return self._traceparent


NOTHING = Nothing()


class OperationSpan(Step):
    """The span of the operation; or ended by `end()`."""

    __slots__ = ("_emit", "_now_unix_ns", "_parent", "kind", "span_id")
    recording = True

    def __init__(
        self, name: str, attributes: Mapping[str, Value] | None, *, parent: SpanContext,
        span_id: int, now_unix_ns: Callable[[], int], emit: Emit, kind: SpanKind,
    ) -> None:  # fmt: skip
        super().__init__(name, attributes, now_unix_ns())
        self._parent = parent
        self.span_id = span_id
        self._now_unix_ns = now_unix_ns
        self._emit = emit
        self.kind = kind

    @property
    def traceparent(self) -> str:
        return form(self._parent.trace_id, self.span_id, sampled=True)

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        if len(self.events) < EVENTS_MAX:
            self.events.append(Event(name, attributes, self._now_unix_ns()))

    def end(self) -> None:
        """Idempotent."""
        if self.end_unix_ns:
            return
        self.end_unix_ns = self._now_unix_ns()
        self._emit(
            name=self.name,
            context=SpanContext(self._parent.trace_id, self.span_id, False, SAMPLED),
            parent=self._parent, attributes=self.attributes, events=tuple(self.events),
            kind=self.kind, status=self.status,
            start_unix_ns=self.start_unix_ns, end_unix_ns=self.end_unix_ns,
        )  # fmt: skip
