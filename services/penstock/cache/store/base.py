"""What the cache keeps, as a Protocol: entries, flights, and answers handed over in flights."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Of an entry and of a flight. The tenant is a part of it: no answer crosses tenants."""

    org_id: str
    fingerprint: bytes


class Verdict(StrEnum):
    MISS = "miss"
    HIT = "hit"
    SHARED = "shared"
    LEAD = "lead"
    WAIT = "wait"
    WAIT_EXPIRED = "wait_expired"


@dataclass(frozen=True, slots=True)
class Ask:
    """One look.

    Attributes:
        joins: Lead a flight, or wait in one, where nothing answers.
        token: The flight's, should this ask lead it.
        lease_ms: Its lease.
        awaited: The flight that was waited in until now: its answer may lie there.
    """

    key: Key
    joins: bool
    token: UUID
    lease_ms: int
    max_age_seconds: int | None = None
    awaited: UUID | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """`answer` and `stored_at` with HIT and SHARED; `token` with LEAD and WAIT."""

    verdict: Verdict
    answer: bytes | None = None
    stored_at: datetime | None = None
    token: UUID | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """An answer. `keeps`: as an entry; `token`: of the flight that it resolves."""

    key: Key
    answer: bytes
    keeps: bool
    ttl_seconds: int
    token: UUID | None = None


@dataclass(frozen=True, slots=True)
class Flight:
    key: Key
    token: UUID


@dataclass(frozen=True, slots=True)
class Swept:
    expired: int
    evicted: int
    size_bytes: int
    """Of the answers that stay."""


class Store(Protocol):
    """Each call is one round trip for all that it is given.

    Raises:
        Unavailable: the store is away (every method).
    """

    async def look_up(self, asks: Sequence[Ask]) -> list[Found]:
        """What each ask finds, in their order."""
        ...

    async def store(self, keeps: Sequence[Keep]) -> None:
        """Keeps answers, hands them to those who wait, ends the flights."""
        ...

    async def abandon(self, flights: Sequence[Flight]) -> None:
        """Ends flights without an answer; those who wait are told."""
        ...

    async def renew(self, flights: Sequence[Flight], lease_ms: int) -> None:
        """Their leaders live."""
        ...

    async def ended(self, flights: Sequence[Flight]) -> set[UUID]:
        """Which of them ended, were taken over, or have a lease that ran out."""
        ...

    async def touch(self, keys: Sequence[Key]) -> None:
        """They were used just now."""
        ...

    async def sweep(self, bytes_max: int) -> Swept:
        """Removes what expired, and the least recently used until the rest fits."""
        ...
