"""Accounts: an organisation, its teams, their keys; a pool is one organisation's account at a
provider. Ids as text (`org_7`) and as its number.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from penstock.core.ids import API_KEY_PREFIX

AccountKind = Literal["org", "team", "key", "pool"]
KeyState = Literal["active", "revoked", "expired", "suspended"]
WindowKind = Literal["minute", "hour", "day", "week", "month", "total"]
CALENDAR_WINDOWS = frozenset({"day", "week", "month"})
"""Those that lie elsewhere in another time zone."""
BudgetUnit = Literal["nano_usd", "requests", "tokens", "in_flight"]
NumberedKind = Literal["budget", "limit", "grant"]

ACCOUNT_KINDS: tuple[AccountKind, ...] = ("org", "team", "key", "pool")

SECRET_BYTES = 24
"""192 bits from the system's generator: cannot be guessed, so a plain hash of it is enough."""
PREFIX_CHARACTERS = 9
"""Shown to tell keys apart: 6 of its 32 random characters."""

_ACCOUNT_ID = re.compile(r"(org|team|key|pool)_([1-9][0-9]{0,17})")
_NUMBERED_ID = re.compile(r"(budget|limit|grant)_([1-9][0-9]{0,17})")
ACCOUNT_NAME = re.compile(r"[a-z0-9-]{1,64}")


def format_id(kind: AccountKind, number: int) -> str:
    return f"{kind}_{number}"


def format_budget_id(number: int) -> str:
    return f"budget_{number}"


def format_limit_id(number: int) -> str:
    """Of a rate limit: a budget in another unit than money."""
    return f"limit_{number}"


def format_grant_id(number: int) -> str:
    return f"grant_{number}"


def parse_id(text: str, *kinds: AccountKind) -> int | None:
    """The number in an account's id of one of these kinds; None: malformed or of another kind."""
    match = _ACCOUNT_ID.fullmatch(text)
    return int(match[2]) if match and match[1] in kinds else None


def parse_numbered(text: str, kind: NumberedKind) -> int | None:
    """The number in `budget_4`, `limit_4` or `grant_5`; None: malformed or of another kind."""
    match = _NUMBERED_ID.fullmatch(text)
    return int(match[2]) if match and match[1] == kind else None


def kind_of(account_id: str) -> AccountKind:
    """Of an id that was checked."""
    kind = account_id.split("_", maxsplit=1)[0]
    return next(known for known in ACCOUNT_KINDS if known == kind)


def new_secret() -> str:
    """A new API key's text."""
    return API_KEY_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def secret_hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class Account:
    """An organisation, a team or a pool; `org_id` is None but for a team.

    `prepaid`: nothing is spent beyond its usable grants. `commercial`: it may not use grants for
    non-commercial use.
    """

    id: int
    kind: AccountKind
    name: str
    org_id: int | None
    suspended: bool
    prepaid: bool
    commercial: bool
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
    """An API key without its texts.

    `prefix` is of the newest text, `secrets` says how many are valid now. `counts_requests`: a
    limit in requests lies on its path.
    """

    id: int
    org_id: int
    team_id: int
    name: str
    state: KeyState
    policy: KeyPolicy
    prefix: str
    secrets: int
    counts_requests: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyText:
    """One text of a key that was rotated, by its first characters, and when it ends: by itself, or
    with the key where that ends sooner.

    `valid_until_before`: the same as a rotation before this one had it; None: there was none.
    """

    prefix: str
    created_at: datetime
    valid_until: datetime
    valid_until_before: datetime | None


@dataclass(frozen=True, slots=True)
class Pool:
    """All providers of the catalogue that are one account at one provider."""

    id: int
    name: str
    providers: tuple[str, ...]
    prepaid: bool
