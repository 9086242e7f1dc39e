"""Sends finished spans to an OTLP collector: in batches, from a thread, never hurting a request.

A full queue drops the oldest spans; a collector that is away costs its spans and two log lines.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

QUEUE_MAX = 16_384
"""Spans that wait: about four seconds of a router at full load, about 30 MB."""

BATCH_MAX = 1_024
"""Spans a message: below a collector's usual 4 MiB by far."""

DELAY_MS = 500
"""How long a span may wait: `penstock trace` finds a request right after its answer."""

SHUTDOWN_SECONDS = 3.0
"""The last batch may take this long; a dead collector must not hold up a drain."""

SILENCE_SECONDS = 60.0
"""Between two log lines about a collector that is away."""

_NOISY = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal")


def endpoint(environment: Mapping[str, str] | None = None) -> str | None:
    """Where OpenTelemetry's standard variables send traces; None: nowhere."""
    env = os.environ if environment is None else environment
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if env.get("OTEL_TRACES_EXPORTER", "otlp").lower() == "none":
        return None
    return (
        env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or None
    )


class QuietExporter(SpanExporter):
    """Counts what another exporter loses, and says so at most once a minute."""

    def __init__(self, inner: SpanExporter, target: str) -> None:
        self._inner = inner
        self._target = target
        self._told_at = -SILENCE_SECONDS
        self._failing = False
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception as error:  # noqa: BLE001 - the boundary: telemetry never fails a service
            result = SpanExportResult.FAILURE
            logger.debug("export of spans failed: %s", type(error).__name__)
        if result is SpanExportResult.SUCCESS:
            if self._failing:
                self._failing = False
                logger.info("traces reach %s again", self._target)
            return result
        self.lost += len(spans)
        self._failing = True
        now = time.monotonic()
        if now - self._told_at >= SILENCE_SECONDS:
            self._told_at = now
            logger.warning("traces do not reach %s (%d spans lost so far)", self._target, self.lost)
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


def otlp(target: str) -> Export:
    """Exports by OTLP over gRPC to OpenTelemetry's standard endpoint."""
    for name in _NOISY:
        # They log every failed batch with its error; QuietExporter tells the same once a minute.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    protocol = os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    )
    if protocol != "grpc":
        logger.warning("OTLP protocol %r is not spoken here; grpc is used", protocol)
    return Export(QuietExporter(OTLPSpanExporter(), target))


def _or_standard(variable: str, ours: int) -> int | None:
    """None lets the SDK read its own standard variable."""
    return None if os.environ.get(variable) else ours
