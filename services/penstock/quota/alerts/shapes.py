"""What a webhook receives: the body in its shape, and Standard Webhooks 1.0 headers.

The signature is HMAC-SHA256 over `<webhook-id>.<webhook-timestamp>.<body>`, one for each secret.
The body that is signed is, byte for byte, the body that is sent. A receiver verifies one signature,
refuses a timestamp more than five minutes from its own clock, and takes each webhook-id once.
"""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC

import msgspec

from penstock.quota.alerts.alert import Alert
from penstock.quota.alerts.config import Shape
from penstock.quota.alerts.text import message

_encode = msgspec.json.Encoder().encode
_SLACK_ESCAPES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"))
"""The ampersand first, or it would escape the others' escapes."""


def body(alert: Alert, shape: Shape) -> bytes:
    """JSON, UTF-8.

    Generic: {"type": "alert.<kind>", "timestamp": RFC 3339, "data": {"id", "kind", "account_id",
    "account", "message", "detail"}}. Slack: {"text"}, with the three characters escaped that Slack
    would read as markup.
    """
    if shape == "slack":
        return _encode({"text": escape_slack(message(alert))})
    return _encode(
        {
            "type": f"alert.{alert.kind}",
            "timestamp": alert.at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "data": {
                "id": alert.ref,
                "kind": alert.kind,
                "account_id": alert.account_id,
                "account": alert.account,
                "message": message(alert),
                "detail": alert.detail,
            },
        }
    )


def headers(
    message_id: str, unix_seconds: int, content: bytes, secrets: Sequence[bytes]
) -> dict[str, str]:
    """Unsigned where there is no secret, as for Slack, which verifies nothing."""
    webhook_id = f"msg_{message_id}"
    found = {
        "content-type": "application/json",
        "user-agent": "penstock-alerts",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(unix_seconds),
    }
    if secrets:
        signed = f"{webhook_id}.{unix_seconds}.".encode() + content
        found["webhook-signature"] = " ".join(signature(signed, secret) for secret in secrets)
    return found


def signature(signed: bytes, secret: bytes) -> str:
    return "v1," + b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def escape_slack(text: str) -> str:
    for character, escaped in _SLACK_ESCAPES:
        text = text.replace(character, escaped)
    return text
