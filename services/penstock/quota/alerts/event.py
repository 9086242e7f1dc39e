"""An alert as an OpenTelemetry event, and as a line of the log."""

import logging
import secrets
import time

import msgspec
from opentelemetry.sdk.trace import Event
from opentelemetry.trace import SpanContext, SpanKind, Status

from penstock.core.semconv import Attributes
from penstock.core.telemetry import Telemetry
from penstock.core.telemetry_context import SAMPLED
from penstock.quota.alerts.alert import Alert
from penstock.quota.alerts.text import message

logger = logging.getLogger(__name__)

EVENT = "penstock.alert"
"""Name of the event, and of the span without duration that carries it."""


def tell(alert: Alert, telemetry: Telemetry | None) -> None:
    """Emits it; never waits, never fails. `penstock.alert.id` tells a repeat."""
    text = message(alert)
    logger.warning("alert %s (%s): %s", alert.ref, alert.kind, text)
    if telemetry is None:
        return
    attributes: Attributes = {
        "penstock.alert.id": alert.ref,
        "penstock.alert.kind": alert.kind,
        "penstock.alert.message": text,
        "penstock.alert.account_id": alert.account_id,
        "penstock.alert.account": alert.account,
        "penstock.alert.detail": msgspec.json.encode(alert.detail).decode(),
    }
    now = time.time_ns()
    telemetry.emit(
        name=EVENT,
        context=SpanContext(
            int.from_bytes(secrets.token_bytes(16)),
            int.from_bytes(secrets.token_bytes(8)),
            False,
            SAMPLED,
        ),
        parent=None,
        attributes=dict(attributes),
        events=(Event(EVENT, attributes, now),),
        kind=SpanKind.INTERNAL,
        status=Status(),
        start_unix_ns=now,
        end_unix_ns=now,
    )
