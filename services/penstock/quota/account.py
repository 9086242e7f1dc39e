"""Accounts: an organisation, its teams, their keys. Ids as text (`org_7`) and as its number."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from penstock.core.ids import API_KEY_PREFIX

AccountKind = Literal["org", "team", "key"]
KeyState = Literal["active", "revoked", "expired", "suspended"]
WindowKind = Literal["total", "month"]

SECRET_BYTES = 24
"""192 bits from the system's generator: cannot be guessed, so a plain hash of it is enough."""
PREFIX_CHARACTERS = 9
"""Shown to tell keys apart: 6 of its 32 random characters."""

_ACCOUNT_ID = re.compile(r"(org|team|key)_([1-9][0-9]{0,17})")
ACCOUNT_NAME = re.compile(r"[a-z0-9-]{1,64}")


def format_id(kind: AccountKind, number: int) -> str:
    return f"{kind}_{number}"


def format_budget_id(number: int) -> str:
    return f"budget_{number}"


def parse_id(text: str, *kinds: AccountKind) -> int | None:
    """The number in an account's id of one of these kinds; None: malformed or of another kind."""
    match = _ACCOUNT_ID.fullmatch(text)
    return int(match[2]) if match and match[1] in kinds else None


def new_secret() -> str:
    """A new API key's text."""
    return API_KEY_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def secret_hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class Account:
    """An organisation or a team; `org_id` is None for an organisation."""

    id: int
    kind: AccountKind
    name: str
    org_id: int | None
    suspended: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """What a key may do."""

    allowed_models: tuple[str, ...]
    local_only: bool
    fail_open_local: bool
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Key:
    """An API key without its text."""

    id: int
    org_id: int
    team_id: int
    name: str
    state: KeyState
    policy: KeyPolicy
    prefix: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on one account and window, with the balances of the window that is open now.

    `limit_nano_usd` None is `unlimited`; `resets_at` None is never.
    """

    id: int
    account_kind: AccountKind
    account_id: int
    window: WindowKind
    name: str
    time_zone: str
    limit_nano_usd: int | None
    posted_nano_usd: int
    held_nano_usd: int
    suspense_nano_usd: int
    resets_at: datetime | None
