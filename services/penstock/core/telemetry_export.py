"""Sends finished spans to an OTLP collector: in batches, from a thread, never hurting a request.

A full queue drops the oldest spans; a collector that is away costs its spans and two log lines.
"""

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from penstock.core.telemetry_collector import Collector, Reach

logger = logging.getLogger(__name__)

QUEUE_MAX: Final = 16_384
"""Spans that wait: about four seconds of a router at full load, about 30 MB."""

BATCH_MAX: Final = 1_024
"""Spans a message: below a collector's usual 4 MiB by far."""

DELAY_MS: Final = 500
"""How long a span may wait: `penstock trace` finds a request right after its answer."""

SHUTDOWN_SECONDS: Final = 3.0
"""The last batch may take this long; a dead collector must not hold up a drain."""

_TALKERS: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)


class _LastWords(logging.Filter):
    """OpenTelemetry's exporters log a failure and return no reason: the last is kept here."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        told = record.getMessage()
        # That they gave up, at a shutdown or else, says less than what they tried against.
        if "shutdown" not in told.lower():
            self.text = told
        return False


_last_words = _LastWords()


class QuietExporter(SpanExporter):
    """Counts what another exporter loses, and tells of it as `Reach` does."""

    def __init__(self, inner: SpanExporter, where: str) -> None:
        self._inner = inner
        self.reach = Reach(logger, where)

    @property
    def lost(self) -> int:
        """Spans, since the start."""
        return self.reach.lost

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
            why = _last_words.text
        except Exception as error:  # noqa: BLE001 - the boundary: telemetry never fails a service
            result, why = SpanExportResult.FAILURE, type(error).__name__
        if result is SpanExportResult.SUCCESS:
            self.reach.worked()
        else:
            self.reach.failed(why, len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class Export:
    """The queue, its thread and the exporter."""

    def __init__(self, exporter: QuietExporter) -> None:
        self.exporter = exporter
        self.processor = BatchSpanProcessor(
            exporter,
            max_queue_size=_or_standard("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_MAX),
            schedule_delay_millis=_or_standard("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS),
            max_export_batch_size=_or_standard("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_MAX),
        )
        self._closed = False

    def flush(self) -> bool:
        """Sends what waits. Blocks as long as the exporter does."""
        return self.processor.force_flush()

    def shutdown(self, timeout_seconds: float = SHUTDOWN_SECONDS) -> None:
        """Sends what waits, within the time-out; then gives it up. Idempotent, blocking."""
        if self._closed:
            return
        self._closed = True
        closing = threading.Thread(target=self.processor.shutdown, daemon=True)
        closing.start()
        closing.join(timeout_seconds)
        if closing.is_alive():
            # Ends the exporter's waits between tries; the thread then runs out by itself.
            self.exporter.shutdown()
            closing.join(1.0)


def otlp(found: Collector) -> Export:
    """Exports to a collector by the protocol that it speaks."""
    for name in _TALKERS:
        logging.getLogger(name).addFilter(_last_words)
    exporter = _by_grpc(found) if found.protocol == "grpc" else _by_http(found)
    return Export(QuietExporter(exporter, str(found)))


# All is told to the exporters, lest they read the environment once more, and otherwise: their
# time-outs are in seconds, and `none` is no compression to one of them. Each is imported only where
# it is spoken.


def _by_grpc(found: Collector) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    credentials = found.grpc_credentials()
    return OTLPSpanExporter(
        endpoint=found.url,
        insecure=credentials is None,
        credentials=credentials,
        headers=tuple(found.headers.items()),
        timeout=found.timeout_seconds,
        compression=grpc.Compression.Gzip if found.is_gzip else grpc.Compression.NoCompression,
    )


def _by_http(found: Collector) -> SpanExporter:
    import requests
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    class Session(requests.Session):
        """Its own certificate wins over REQUESTS_CA_BUNDLE, unlike with requests' own."""

        def merge_environment_settings(
            self, url: str, proxies: Any, stream: Any, verify: Any, cert: Any
        ) -> dict[str, Any]:
            own = self.verify if verify is None else verify
            return super().merge_environment_settings(url, proxies, stream, own, cert)

    def named(path: Path | None) -> str | None:
        return str(path) if path else None

    return OTLPSpanExporter(
        endpoint=found.url,
        certificate_file=named(found.certificate),
        client_key_file=named(found.client_key),
        client_certificate_file=named(found.client_certificate),
        headers=found.headers,
        timeout=found.timeout_seconds,
        compression=Compression.Gzip if found.is_gzip else Compression.NoCompression,
        session=Session(),
    )


def _or_standard(variable: str, ours: int) -> int | None:
    """None lets the SDK read its own standard variable."""
    return None if os.environ.get(variable) else ours
