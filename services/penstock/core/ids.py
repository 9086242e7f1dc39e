"""Ids. UUIDv7 (RFC 9562): sortable by time, so that the ledger can tell an id that is too old."""

import os
import time
import uuid

API_KEY_PREFIX = "ps-"
"""Of every API key's text: a key that lies about is known for one, also by scanners of secrets."""


def uuid7(unix_ms: int | None = None) -> str:
    """A new UUIDv7 as text, of this time or of now; the rest of it is random."""
    ms = int(time.time() * 1000) if unix_ms is None else unix_ms
    rand = int.from_bytes(os.urandom(10))
    value = (ms & (1 << 48) - 1) << 80 | rand
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def uuid7_unix_ms(text: str) -> int:
    """The time inside a UUIDv7, in milliseconds.

    Raises:
        ValueError: `text` is no UUIDv7.
    """
    value = uuid.UUID(text)
    if value.version != 7:
        raise ValueError(f"{text!r} is no UUIDv7")
    return value.int >> 80


def request_id() -> str:
    return f"req_{uuid.UUID(uuid7()).hex}"
