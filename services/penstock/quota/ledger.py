"""The operations on the money, their answers and their refusals. Pure: what moves is decided in SQL
(store/migrations), in one transaction with what it depends on; here is what it means to a caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from penstock.core import errors
from penstock.core.money import format_usd
from penstock.quota.account import AccountKind, WindowKind, format_budget_id, format_id

AMOUNT_NANO_USD_MAX = 10**15
"""A million USD for one attempt: more is the caller's fault, and sums stay far from int64's end."""
TOKENS_MAX = 10**12
TTL_MS_MAX = 86_400_000
ID_HORIZON_MS = 7 * 86_400_000
"""An id is remembered for at least this long, then refused as too old (LEDGER, I3)."""

Pool = Literal["local", "paid"]


@dataclass(frozen=True, slots=True)
class Reserve:
    """Holds `amount_nano_usd` on the whole path of a key for `ttl_ms`."""

    reservation_id: str
    id_unix_ms: int
    request_id: str
    attempt: int
    key_id: int
    pool: Pool
    provider: str
    model: str
    amount_nano_usd: int
    ttl_ms: int
    end_user: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Settle:
    """Posts what an attempt used; token counts are as the upstream reported them."""

    reservation_id: str
    id_unix_ms: int
    amount_nano_usd: int
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    estimated: bool
    outcome: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class Void:
    """Gives a hold back."""

    reservation_id: str
    id_unix_ms: int
    outcome: str


Operation = Reserve | Settle | Void


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first budget of the path, organisation first, that has too little left."""

    budget_id: int
    budget_name: str
    account_kind: AccountKind
    account_id: int
    window: WindowKind
    limit_nano_usd: int
    posted_nano_usd: int
    held_nano_usd: int
    suspense_nano_usd: int
    requested_nano_usd: int
    resets_at_ms: int | None

    @property
    def left_nano_usd(self) -> int:
        used = self.posted_nano_usd + self.held_nano_usd + self.suspense_nano_usd
        return self.limit_nano_usd - used

    @property
    def resets_at(self) -> datetime | None:
        if self.resets_at_ms is None:
            return None
        return datetime.fromtimestamp(self.resets_at_ms / 1000, UTC)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was done to the reservation. `remaining_nano_usd` None: every budget is unlimited."""

    expires_at: datetime | None
    remaining_nano_usd: int | None
    posted_nano_usd: int
    released_nano_usd: int
    overage: bool
    late: bool


class BudgetRefused(errors.BudgetExceeded):
    """BudgetExceeded with the facts of the budget."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(_refusal_text(refusal), metadata=_refusal_metadata(refusal))
        self.refusal = refusal


def refused(reason: str, operation: Operation, refusal: Refusal | None) -> errors.PenstockError:
    """The error that a reason of the ledger means to the caller."""
    if refusal is not None:
        return BudgetRefused(refusal)
    kind, text = _REASONS[reason]
    metadata = {"reservation_id": operation.reservation_id}
    if isinstance(operation, Reserve):
        metadata["key_id"] = format_id("key", operation.key_id)
    return kind(text.format(**metadata), reason=reason, metadata=metadata)


_REASONS: dict[str, tuple[type[errors.PenstockError], str]] = {
    "KEY_UNKNOWN": (errors.NotFound, "key {key_id} does not exist"),
    "KEY_REVOKED": (errors.PermissionDenied, "key {key_id} is revoked; use another"),
    "KEY_EXPIRED": (errors.PermissionDenied, "key {key_id} has expired; use another"),
    "ACCOUNT_SUSPENDED": (
        errors.PermissionDenied,
        "the team or organisation of key {key_id} is suspended; ask its operator",
    ),
    "BUDGET_MISSING": (
        errors.FailedPrecondition,
        "key {key_id} has no budget, nor has its team or organisation: set one, or set `unlimited`",
    ),
    "RESERVATION_UNKNOWN": (errors.NotFound, "reservation {reservation_id} does not exist"),
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
    "DEADLINE_EXCEEDED": (
        errors.DeadlineExceeded,
        "the deadline passed before reservation {reservation_id} was applied; nothing is held",
    ),
}


def _refusal_text(refusal: Refusal) -> str:
    resets_at = refusal.resets_at
    when = f"resets at {resets_at:%Y-%m-%dT%H:%M:%SZ}" if resets_at else "never resets"
    left = max(0, refusal.left_nano_usd)
    return (
        f"budget {refusal.budget_name!r} ({refusal.window}) of "
        f"{format_id(refusal.account_kind, refusal.account_id)} has {format_usd(left)} USD left of "
        f"{format_usd(refusal.limit_nano_usd)}, the attempt may cost "
        f"{format_usd(refusal.requested_nano_usd)}; it {when}"
    )


def _refusal_metadata(refusal: Refusal) -> dict[str, str]:
    facts = {
        "budget_id": format_budget_id(refusal.budget_id),
        "budget_name": refusal.budget_name,
        "account_kind": refusal.account_kind,
        "account_id": format_id(refusal.account_kind, refusal.account_id),
        "window": refusal.window,
        "limit_nano_usd": str(refusal.limit_nano_usd),
        "posted_nano_usd": str(refusal.posted_nano_usd),
        "held_nano_usd": str(refusal.held_nano_usd),
        "suspense_nano_usd": str(refusal.suspense_nano_usd),
        "requested_nano_usd": str(refusal.requested_nano_usd),
    }
    if refusal.resets_at is not None:
        facts["resets_at"] = refusal.resets_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return facts
