"""A fact that somebody should know of, and what became of telling it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

KINDS = (
    "budget_threshold", "budget_exhaustion_forecast", "overage", "late_settle", "suspense_old",
    "drift", "grant_expiring", "test",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alert:
    """One row of `alerts`.

    Attributes:
        id: Its number; `ref` is its text.
        at: By the database's clock.
        account_id: As text (`team_8`); empty: nobody's alone.
        account: What people call it ("team acme/search"); empty likewise.
        detail: Facts of its kind. Money is int nano-USD.
    """

    id: int
    kind: str
    at: datetime
    account_id: str
    account: str
    detail: Mapping[str, Any]

    @property
    def ref(self) -> str:
        return f"alert_{self.id}"


@dataclass(frozen=True, slots=True)
class Listed:
    """An alert, and how many of its webhooks took it."""

    alert: Alert
    delivered: int
    deliveries: int
    last_error: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One try of one delivery: nobody else makes one until it is taken for dead.

    Attributes:
        message_id: 32 hexadecimal digits, the same in every try.
        tries: This one included, from 1.
    """

    alert: Alert
    webhook: str
    message_id: str
    tries: int


@dataclass(frozen=True, slots=True)
class Answer:
    """How a webhook answered one POST.

    Attributes:
        status: HTTP's; 0: none came.
        error: Empty: it took it. Never holds what the receiver wrote, nor the address.
        retry_after_seconds: What it asked for; None: nothing.
    """

    status: int
    error: str
    seconds: float
    retry_after_seconds: int | None = None

    @property
    def is_final(self) -> bool:
        """410: the receiver wants to hear no more of it."""
        return not self.error or self.status == 410
