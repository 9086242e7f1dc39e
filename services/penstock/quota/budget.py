"""Budgets and grants: what may be spent, on what, in which time. A rate limit is a budget in
another unit than money.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from penstock.quota.account import AccountKind, BudgetUnit, WindowKind

SOFT_PERCENTS_DEFAULT = (50, 80, 100)


def glob_to_like(glob: str) -> str:
    r"""`*` stands for any characters; what LIKE knows of its own is escaped: `a_b*` → `a\_b%`."""
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%")


def like_to_glob(pattern: str) -> str:
    """The other way round, of a pattern that `glob_to_like` made."""
    glob, escaped = [], False
    for character in pattern:
        if escaped:
            glob.append(character)
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            glob.append("*" if character == "%" else character)
    return "".join(glob)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a budget or grant applies to; empty: everything. Names are globs."""

    providers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


EVERYTHING = Scope()


@dataclass(frozen=True, slots=True)
class BudgetWish:
    """What a budget shall be.

    Attributes:
        window: None: as it is; a new one needs it.
        time_zone: None: as it is; of a new one UTC.
        limit: None is unlimited.
        scope: None: as it is; of a new one everything.
    """

    account_kind: AccountKind
    account_id: int
    unit: BudgetUnit
    window: WindowKind | None
    name: str
    time_zone: str | None
    limit: int | None
    scope: Scope | None = None
    soft_percents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on one account, with the balances of the window that is open now.

    `limit` and the balances are in `unit`; `limit` None is `unlimited`, `resets_at` None is never.
    """

    id: int
    account_kind: AccountKind
    account_id: int
    unit: BudgetUnit
    window: WindowKind
    name: str
    time_zone: str
    limit: int | None
    scope: Scope
    soft_percents: tuple[int, ...]
    closed: bool
    posted: int
    held: int
    suspense: int
    resets_at: datetime | None

    def settings(self) -> dict[str, Any]:
        """What an operator set: no balances."""
        return {
            "id": self.id,
            "name": self.name,
            "unit": self.unit,
            "window": self.window,
            "time_zone": self.time_zone,
            "limit": self.limit,
            "scope": self.scope,
            "soft_percents": self.soft_percents,
            "closed": self.closed,
        }


@dataclass(frozen=True, slots=True)
class GrantWish:
    """Credit to be made. `starts_at` None is now, `expires_at` None is never."""

    grant_key: str
    account_kind: AccountKind
    account_id: int
    name: str
    reason: str
    amount_nano_usd: int
    starts_at: datetime | None
    expires_at: datetime | None
    scope: Scope
    commercial_use: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """Prepaid credit, usable from `starts_at` until before `expires_at` (None: for ever)."""

    id: int
    grant_key: str
    account_kind: AccountKind
    account_id: int
    name: str
    reason: str
    amount_nano_usd: int
    starts_at: datetime
    expires_at: datetime | None
    scope: Scope
    commercial_use: bool
    posted_nano_usd: int
    held_nano_usd: int
    suspense_nano_usd: int
    lapsed_nano_usd: int
    created_at: datetime

    @property
    def rest_nano_usd(self) -> int:
        """What is neither used, nor held, nor lapsed. Negative after an overage."""
        return (
            self.amount_nano_usd
            - self.posted_nano_usd
            - self.held_nano_usd
            - self.suspense_nano_usd
            - self.lapsed_nano_usd
        )

    def settings(self) -> dict[str, Any]:
        """What an operator set: no balances."""
        return {
            "id": self.id,
            "grant_key": self.grant_key,
            "name": self.name,
            "reason": self.reason,
            "amount_nano_usd": self.amount_nano_usd,
            "starts_at": self.starts_at,
            "expires_at": self.expires_at,
            "scope": self.scope,
            "commercial_use": self.commercial_use,
        }
