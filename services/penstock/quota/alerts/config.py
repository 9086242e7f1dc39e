"""Where alerts go, from the environment of the quota process.

PENSTOCK_ALERTS_WEBHOOKS: addresses, separated by commas or white space. `https://…` gets the signed
generic body, `slack+https://…` the one that Slack's incoming webhooks take. Who sets them is the
operator: they may name any host, and a redirect to another one is not followed.

PENSTOCK_ALERTS_SECRET: signs the bodies; at least 24 bytes, or `whsec_` and their base64 (Standard
Webhooks). While it is being changed: the new one and the old one, separated by a comma; each body
then carries both signatures.

PENSTOCK_ALERTS_SUSPENSE_HOURS: how old money in suspense may get without an alert; default 24.
"""

import binascii
import hashlib
import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal
from urllib.parse import urlsplit

Shape = Literal["generic", "slack"]

WEBHOOKS_MAX = 16
"""Each is a task and a connection of every quota process."""
SECRETS_MAX = 4
"""Two overlap in a rotation; more would only lengthen every request."""
SECRET_BYTES_MIN = 24
"""192 bits, what Standard Webhooks 1.0 asks for."""
SUSPENSE_HOURS_DEFAULT = 24
SUSPENSE_HOURS_MAX = 24 * 30
SLACK_PREFIX = "slack+"
SECRET_PREFIX = "whsec_"  # noqa: S105 - the mark of a secret, not one

_SEPARATORS = re.compile(r"[\s,]+")


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver. Only its host is ever shown: path, query and user may hold a secret."""

    url: str = field(repr=False)
    shape: Shape
    host: str

    @property
    def id(self) -> str:
        """The same in every process that knows the address."""
        return hashlib.sha256(f"{self.shape} {self.url}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AlertsConfig:
    """Attributes:
    webhooks: Who is told.
    secrets: Keys of the signatures, the newest first.
    suspense_age: Older suspense is told.
    """

    webhooks: tuple[Webhook, ...] = ()
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    suspense_age: timedelta = timedelta(hours=SUSPENSE_HOURS_DEFAULT)


def read_alerts_config(environment: Mapping[str, str]) -> tuple[AlertsConfig, list[str]]:
    """The configuration, and every fault by its variable; no fault quotes a value."""
    faults: list[str] = []
    webhooks = _webhooks(environment.get("PENSTOCK_ALERTS_WEBHOOKS", ""), faults)
    secrets = _secrets(environment.get("PENSTOCK_ALERTS_SECRET", ""), faults)
    if any(w.shape == "generic" for w in webhooks) and not secrets and not faults:
        faults.append(
            "PENSTOCK_ALERTS_SECRET: set it, a webhook's receiver must be able to know who sends"
        )
    text = environment.get("PENSTOCK_ALERTS_SUSPENSE_HOURS", "") or str(SUSPENSE_HOURS_DEFAULT)
    hours = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0
    if not 1 <= hours <= SUSPENSE_HOURS_MAX:
        faults.append(f"PENSTOCK_ALERTS_SUSPENSE_HOURS: takes 1 to {SUSPENSE_HOURS_MAX}")
    return AlertsConfig(webhooks, secrets, timedelta(hours=hours)), faults


def _items(text: str) -> list[str]:
    return list(dict.fromkeys(item for item in _SEPARATORS.split(text) if item))


def _webhooks(text: str, faults: list[str]) -> tuple[Webhook, ...]:
    items = _items(text)
    if len(items) > WEBHOOKS_MAX:
        faults.append(f"PENSTOCK_ALERTS_WEBHOOKS: takes at most {WEBHOOKS_MAX} addresses")
    webhooks = []
    for number, item in enumerate(items[:WEBHOOKS_MAX], 1):
        webhook = _webhook(item)
        if webhook is None:
            faults.append(
                f"PENSTOCK_ALERTS_WEBHOOKS: number {number} is no https://host/… or"
                " slack+https://host/… (http, too)"
            )
        else:
            webhooks.append(webhook)
    return tuple(webhooks)


def _webhook(item: str) -> Webhook | None:
    shape: Shape = "slack" if item.startswith(SLACK_PREFIX) else "generic"
    url = item.removeprefix(SLACK_PREFIX)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in {"https", "http"} or not parts.hostname or not url.isascii():
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Webhook(url, shape, host if port is None else f"{host}:{port}")


def _secrets(text: str, faults: list[str]) -> tuple[bytes, ...]:
    items = _items(text)
    if len(items) > SECRETS_MAX:
        faults.append(f"PENSTOCK_ALERTS_SECRET: takes at most {SECRETS_MAX}")
    secrets = tuple(_secret(item) for item in items[:SECRETS_MAX])
    if any(len(secret) < SECRET_BYTES_MIN for secret in secrets):
        faults.append(
            f"PENSTOCK_ALERTS_SECRET: takes at least {SECRET_BYTES_MIN} bytes, plain or as"
            f" {SECRET_PREFIX}<base64>; `openssl rand -hex 32` makes one"
        )
    return secrets


def _secret(item: str) -> bytes:
    if not item.startswith(SECRET_PREFIX):
        return item.encode()
    try:
        return b64decode(item.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        return b""
