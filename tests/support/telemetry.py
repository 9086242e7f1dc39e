"""Telemetry whose spans stay in memory, with ids and time that a test decides."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from penstock.core.telemetry import Telemetry


class Recorded:
    """Telemetry and what it exported."""

    def __init__(self, **settings: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.now_unix_ns = 1_000_000_000
        self.monotonic_seconds = 0.0
        self.telemetry = Telemetry(
            "router",
            self._exporter,
            now_unix_ns=lambda: self.now_unix_ns,
            monotonic_seconds=lambda: self.monotonic_seconds,
            **settings,
        )

    def spans(self) -> list[ReadableSpan]:
        """All so far, in the order in which they ended."""
        assert self.telemetry.flush()
        return list(self._exporter.get_finished_spans())

    def by_name(self) -> dict[str, ReadableSpan]:
        spans = self.spans()
        found = {span.name: span for span in spans}
        assert len(spans) == len(found), [span.name for span in spans]
        return found


@contextmanager
def recorded(**settings: Any) -> Iterator[Recorded]:
    it = Recorded(**settings)
    try:
        yield it
    finally:
        it.telemetry.shutdown()
