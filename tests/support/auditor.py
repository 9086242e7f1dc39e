"""An independent ledger in plain Python, written from LEDGER's invariants and not from our SQL.

It resolves expired holds at once, where the real one is lazy: whoever asks must see no difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from penstock.quota.ledger import Operation, Reserve, Settle, Void

HORIZON = timedelta(days=7)


@dataclass
class BudgetModel:
    kind: str
    account_id: int
    window: str
    zone: str
    limit: int | None

    def window_at(self, now: datetime) -> str:
        return "" if self.window == "total" else f"{now.astimezone(ZoneInfo(self.zone)):%Y-%m}"


@dataclass
class Balance:
    posted: int = 0
    held: int = 0
    suspense: int = 0

    @property
    def used(self) -> int:
        return self.posted + self.held + self.suspense


@dataclass
class Record:
    """What is remembered under one id."""

    state: str
    reserve: Reserve | None = None
    balances: list[Balance] = field(default_factory=list)
    expires_at: datetime | None = None
    remaining: int | None = None
    reason: str = ""
    settle: Settle | None = None
    answer: tuple[Any, ...] = (0, 0, False, False)


@dataclass
class Auditor:
    """Attributes:
    paths: Budgets of each key, organisation first, total before month.
    """

    now: datetime
    paths: dict[int, list[BudgetModel]]
    suspended: bool = False
    balances: dict[tuple[str, int, str, str], Balance] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)

    def open_balances(self, key_id: int) -> Iterator[tuple[BudgetModel, Balance]]:
        for budget in self.paths[key_id]:
            place = (budget.kind, budget.account_id, budget.window, budget.window_at(self.now))
            yield budget, self.balances.setdefault(place, Balance())

    def advance(self, delta: timedelta) -> None:
        self.now += delta
        for record in self.records.values():
            if record.state == "held" and record.expires_at <= self.now:
                record.state = "expired"
                amount = record.reserve.amount_nano_usd
                for balance in record.balances:
                    balance.held -= amount
                    if record.reserve.pool == "paid":
                        balance.suspense += amount

    def apply(self, operation: Operation) -> tuple[str, tuple[Any, ...]]:
        """The reason or "ok", and posted, released, overage, late (for a reserve: expiry, rest)."""
        match operation:
            case Reserve():
                return self._reserve(operation)
            case Settle():
                return self._settle(operation)
            case Void():
                return self._void(operation)

    def _reserve(self, reserve: Reserve) -> tuple[str, tuple[Any, ...]]:
        record = self.records.get(reserve.reservation_id)
        if record is not None:
            if record.reserve is None:
                return "RESERVATION_VOIDED", ()
            if record.reserve != reserve:
                return "RESERVATION_ID_REUSED", ()
            return (record.reason or "ok"), (record.expires_at, record.remaining)
        if reserve.id_unix_ms < (self.now - HORIZON).timestamp() * 1000:
            return "RESERVATION_ID_TOO_OLD", ()
        record = Record("refused", reserve)
        self.records[reserve.reservation_id] = record
        path = list(self.open_balances(reserve.key_id))
        rests = [b.limit - balance.used for b, balance in path if b.limit is not None]
        amount = reserve.amount_nano_usd
        if self.suspended:
            record.reason = "ACCOUNT_SUSPENDED"
        elif not path:
            record.reason = "BUDGET_MISSING"
        elif any(rest < amount for rest in rests):
            record.reason = "BUDGET_EXCEEDED"
        else:
            record.state = "held"
            record.expires_at = self.now + timedelta(milliseconds=reserve.ttl_ms)
            record.remaining = min((rest - amount for rest in rests), default=None)
            record.balances = [balance for _, balance in path]
            for balance in record.balances:
                balance.held += amount
        return (record.reason or "ok"), (record.expires_at, record.remaining)

    def _settle(self, settle: Settle) -> tuple[str, tuple[Any, ...]]:
        record = self.records.get(settle.reservation_id)
        if record is None:
            return "RESERVATION_UNKNOWN", ()
        if record.state in ("refused", "voided"):
            return f"RESERVATION_{record.state.upper()}", ()
        if record.state == "settled":
            same = replace(settle, trace_id="") == replace(record.settle, trace_id="")
            return ("ok" if same else "RESERVATION_SETTLED"), record.answer
        used, promised = settle.amount_nano_usd, record.reserve.amount_nano_usd
        late = record.state == "expired"
        counted = 0 if late and record.reserve.pool == "local" else promised
        for balance in record.balances:
            balance.posted += used
            if late:
                balance.suspense -= counted
            else:
                balance.held -= counted
        record.state, record.settle = "settled", settle
        record.answer = (used, max(counted - used, 0), used > promised, late)
        return "ok", record.answer

    def _void(self, void: Void) -> tuple[str, tuple[Any, ...]]:
        record = self.records.get(void.reservation_id)
        if record is None:
            if void.id_unix_ms < (self.now - HORIZON).timestamp() * 1000:
                return "RESERVATION_UNKNOWN", ()
            record = self.records[void.reservation_id] = Record("voided")
        if record.state == "settled":
            return "RESERVATION_SETTLED", ()
        if record.state in ("held", "expired"):
            late = record.state == "expired"
            amount = record.reserve.amount_nano_usd
            released = 0 if late and record.reserve.pool == "local" else amount
            for balance in record.balances:
                if late:
                    balance.suspense -= released
                else:
                    balance.held -= released
            record.state, record.answer = "voided", (0, released, False, late)
        return "ok", record.answer
