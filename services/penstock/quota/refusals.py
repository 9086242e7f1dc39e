"""Why the ledger refused an operation, with the facts that the caller needs to go on."""

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from penstock.core import errors
from penstock.core.money import format_usd
from penstock.quota.account import (
    CALENDAR_WINDOWS,
    AccountKind,
    BudgetUnit,
    WindowKind,
    format_budget_id,
    format_id,
    format_limit_id,
)
from penstock.quota.ledger import Operation

_UNIT_NAMES: dict[BudgetUnit, str] = {
    "nano_usd": "nano-USD",
    "requests": "requests",
    "tokens": "tokens",
    "in_flight": "requests in flight",
}


@dataclass(frozen=True, slots=True)
class LimitFacts:
    """The first budget or rate limit of the path, organisation first, that has too little left.

    Amounts are in `unit`. `time_zone` is the window's. `resets_at_ms` (Unix time) is when that one
    ends; for in_flight, when the first hold expires at the latest. None: never.
    """

    budget_id: int
    budget_name: str
    account_kind: AccountKind
    account_id: int
    account_name: str
    unit: BudgetUnit
    window: WindowKind
    time_zone: str
    limit: int
    posted: int
    held: int
    suspense: int
    requested: int
    resets_at_ms: int | None

    @property
    def used(self) -> int:
        return self.posted + self.held + self.suspense

    @property
    def left(self) -> int:
        """Not less than nothing, whatever was posted beyond the limit."""
        return max(0, self.limit - self.used)

    @property
    def resets_at(self) -> datetime | None:
        if self.resets_at_ms is None:
            return None
        return datetime.fromtimestamp(self.resets_at_ms / 1000, UTC)


@dataclass(frozen=True, slots=True)
class CreditFacts:
    """A prepaid account whose usable grants are less than what was asked, in nano-USD."""

    account_kind: AccountKind
    account_id: int
    account_name: str
    available: int
    requested: int


class BudgetRefused(errors.BudgetExceeded):
    """A budget has too little left."""

    def __init__(self, facts: LimitFacts) -> None:
        super().__init__(_budget_text(facts), metadata=_budget_metadata(facts))
        self.facts = facts


class RateRefused(errors.RateLimited):
    """A rate limit is full. `retry_after_seconds` None: what was asked is more than the limit."""

    def __init__(self, facts: LimitFacts, now: datetime) -> None:
        retry_after = None
        if facts.requested <= facts.limit and facts.resets_at_ms is not None:
            retry_after = max(0.0, facts.resets_at_ms / 1000 - now.timestamp())
        super().__init__(
            _rate_text(facts, retry_after),
            metadata=_rate_metadata(facts),
            retry_after_seconds=retry_after,
        )
        self.facts = facts


class CreditRefused(errors.CreditExhausted):
    """Prepaid credit is used up."""

    def __init__(self, facts: CreditFacts) -> None:
        super().__init__(
            f"prepaid {facts.account_kind} {facts.account_name!r} has "
            f"{format_usd(facts.available)} USD of usable credit left, the attempt may cost "
            f"{format_usd(facts.requested)}; its operator can grant more",
            metadata={
                "account_kind": facts.account_kind,
                "account_id": format_id(facts.account_kind, facts.account_id),
                "account_name": facts.account_name,
                "available_nano_usd": str(facts.available),
                "requested_nano_usd": str(facts.requested),
            },
        )
        self.facts = facts


def refused(
    reason: str, operation: Operation, facts_json: str | None, now: datetime
) -> errors.PenstockError:
    """The error that a reason of the ledger means to the caller. `now`: of the ledger's clock."""
    if reason == "CREDIT_EXHAUSTED":
        return CreditRefused(_decode_credit(facts_json or ""))
    if reason == "BUDGET_EXCEEDED":
        return BudgetRefused(_decode_limit(facts_json or ""))
    if reason == "RATE_LIMITED":
        return RateRefused(_decode_limit(facts_json or ""), now)
    return _told(reason, operation)


def too_late(operation: Operation) -> errors.PenstockError:
    """Its caller has stopped waiting before it was applied."""
    return _told("DEADLINE_EXCEEDED", operation)


def _told(reason: str, operation: Operation) -> errors.PenstockError:
    kind, text = _REASONS[reason]
    metadata = {"reservation_id": operation.reservation_id}
    # Whoever asked, and never whose it is.
    if operation.key_id is not None:
        metadata["key_id"] = format_id("key", operation.key_id)
    told = {"key_id": "that reserved"} | metadata
    return kind(text.format(**told), reason=reason, metadata=metadata)


_decode_limit = msgspec.json.Decoder(LimitFacts).decode
_decode_credit = msgspec.json.Decoder(CreditFacts).decode

_REASONS: dict[str, tuple[type[errors.PenstockError], str]] = {
    "KEY_UNKNOWN": (errors.NotFound, "key {key_id} does not exist"),
    "KEY_REVOKED": (errors.Unauthenticated, "key {key_id} is revoked; use another"),
    "KEY_EXPIRED": (errors.Unauthenticated, "key {key_id} has expired; use another"),
    "ACCOUNT_SUSPENDED": (
        errors.PermissionDenied,
        "the team or organisation of key {key_id} is suspended; ask its operator",
    ),
    "BUDGET_MISSING": (
        errors.FailedPrecondition,
        "no budget of key {key_id}, its team or its organisation applies: set one, or `unlimited`",
    ),
    "ABANDONED_HOLDS": (
        errors.Unavailable,
        "many abandoned holds are being resolved before {reservation_id}; try again",
    ),
    "RESERVATION_UNKNOWN": (errors.NotFound, "reservation {reservation_id} does not exist"),
    "RESERVATION_NOT_YOURS": (
        errors.PermissionDenied,
        "reservation {reservation_id} is not of key {key_id}; nothing was changed",
    ),
    "RESERVATION_REFUSED": (
        errors.FailedPrecondition,
        "reservation {reservation_id} was refused: there is nothing to settle",
    ),
    "RESERVATION_VOIDED": (
        errors.FailedPrecondition,
        "reservation {reservation_id} was voided; a new attempt takes a new id",
    ),
    "RESERVATION_SETTLED": (
        errors.FailedPrecondition,
        "reservation {reservation_id} was settled before, and otherwise; the first one stands",
    ),
    "RESERVATION_ID_REUSED": (
        errors.Conflict,
        "reservation {reservation_id} exists with other fields; a new attempt takes a new id",
    ),
    "RESERVATION_ID_TOO_OLD": (
        errors.InvalidRequest,
        "reservation_id {reservation_id} is older than 7 days; take a new UUIDv7",
    ),
    "RESERVATION_ID_IN_FUTURE": (
        errors.InvalidRequest,
        "reservation_id {reservation_id} is from more than a day ahead; set the caller's clock",
    ),
    "RESERVATION_EXPIRED": (
        errors.FailedPrecondition,
        "reservation {reservation_id} has expired: it cannot be extended, only settled",
    ),
    "DEADLINE_EXCEEDED": (
        errors.DeadlineExceeded,
        "the deadline passed before reservation {reservation_id} was applied; nothing is held",
    ),
}


def _when(facts: LimitFacts) -> str:
    return f"resets at {_instant(facts.resets_at)}" if facts.resets_at else "never resets"


def _instant(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _what(facts: LimitFacts) -> str:
    """Which it is, of which window, and whose."""
    kind = "budget" if facts.unit == "nano_usd" else "limit"
    zone = f", {facts.time_zone}" if facts.window in CALENDAR_WINDOWS else ""
    window = "" if facts.unit == "in_flight" else f" ({facts.window}{zone})"
    return f"{kind} {facts.budget_name!r}{window} of {facts.account_kind} {facts.account_name!r}"


def _budget_text(facts: LimitFacts) -> str:
    return (
        f"{_what(facts)} has {format_usd(facts.left)} USD left of {format_usd(facts.limit)}, the"
        f" attempt may cost {format_usd(facts.requested)}; it {_when(facts)}"
    )


def _rate_text(facts: LimitFacts, retry_after_seconds: float | None) -> str:
    unit = _UNIT_NAMES[facts.unit]
    if facts.requested > facts.limit:
        return (
            f"{_what(facts)} is {facts.limit} {unit}, the attempt alone counts {facts.requested}:"
            " ask for less, or raise it"
        )
    what = f"{_what(facts)} has {facts.left} {unit} left of {facts.limit}, the attempt counts"
    if retry_after_seconds is None:
        return f"{what} {facts.requested} more; the window of its hold gets no more"
    if facts.unit == "in_flight":
        return f"{what} {facts.requested}; try again when one has ended"
    return f"{what} {facts.requested}; it {_when(facts)}"


def _limit_metadata(facts: LimitFacts) -> dict[str, str]:
    told = {
        "account_kind": facts.account_kind,
        "account_id": format_id(facts.account_kind, facts.account_id),
        "account_name": facts.account_name,
        "window": facts.window,
        "time_zone": facts.time_zone,
    }
    if facts.resets_at is not None and facts.unit != "in_flight":
        told["resets_at"] = _instant(facts.resets_at)
    return told


def _budget_metadata(facts: LimitFacts) -> dict[str, str]:
    return _limit_metadata(facts) | {
        "budget_id": format_budget_id(facts.budget_id),
        "budget_name": facts.budget_name,
        "limit_nano_usd": str(facts.limit),
        "posted_nano_usd": str(facts.posted),
        "held_nano_usd": str(facts.held),
        "suspense_nano_usd": str(facts.suspense),
        "requested_nano_usd": str(facts.requested),
    }


def _rate_metadata(facts: LimitFacts) -> dict[str, str]:
    return _limit_metadata(facts) | {
        "limit_id": format_limit_id(facts.budget_id),
        "limit_name": facts.budget_name,
        "unit": facts.unit,
        "limit": str(facts.limit),
        "used": str(facts.used),
        "requested": str(facts.requested),
    }
