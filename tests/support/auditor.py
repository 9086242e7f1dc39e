"""An independent ledger in plain Python, written from LEDGER's invariants and not from our SQL.

It resolves expired holds at once, where the real one is lazy: whoever asks must see no difference.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from penstock.quota.ledger import Extend, Operation, Reserve, Settle, Void
from support.audited import Balance, BudgetModel, GrantModel, WorldModel

HORIZON = timedelta(days=7)
AHEAD = timedelta(days=1)
PAID = "paid"
Verdict = tuple[str, tuple[Any, ...]]
"""The reason or "ok", and its facts: see `Auditor.apply`."""


@dataclass
class Slice:
    grant: GrantModel
    amount: int
    side: int


@dataclass
class Record:
    """What is remembered under one id."""

    state: str
    reserve: Reserve | None = None
    amount: int = 0
    tokens: int = 0
    places: list[tuple[BudgetModel, Balance]] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    expires_at: datetime | None = None
    remaining: int | None = None
    refusal: Verdict | None = None
    settle: Settle | None = None
    answer: tuple[Any, ...] = (0, 0, False, False)

    def held_in(self, unit: str) -> int:
        """What the hold counts in a bucket of this unit."""
        return {"nano_usd": self.amount, "tokens": self.tokens}.get(unit, 1)


@dataclass
class Auditor:
    """One world's ledger. Its clock only goes forward."""

    now: datetime
    world: WorldModel
    balances: dict[tuple[int, datetime | None], Balance] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    _ends_before: dict[int, datetime | None] = field(default_factory=dict)

    def advance(self, delta: timedelta) -> None:
        self.now += delta
        for record in self.records.values():
            if record.state == "held" and record.expires_at <= self.now:
                record.state = "expired"
                self._move(record, held=-1, suspense=int(record.reserve.pool == PAID))

    def sweep(self) -> None:
        """What ended grants have left lapses."""
        for grant in self.world.grants:
            if grant.ends_at <= self.now:
                grant.lapsed += max(grant.rest, 0)

    def apply(self, *operations: Operation) -> list[Verdict]:
        """One batch: what gives room first. Facts of a reserve or extension: expiry, rest; of a
        settle or void: posted, released, overage, late; of a rate limit: the seconds to wait, at
        least (a hold that the same batch extends is told to end as it did before).
        """
        self._ends_before = {id(r): r.expires_at for r in self.records.values()}
        verdicts: dict[int, Verdict] = {}
        for gives_room in (True, False):
            for place, operation in enumerate(operations):
                if isinstance(operation, Settle | Void) == gives_room:
                    verdicts[place] = self._apply(operation)
        return [verdicts[place] for place in range(len(operations))]

    def _apply(self, operation: Operation) -> Verdict:
        match operation:
            case Reserve():
                return self._reserve(operation)
            case Extend():
                return self._extend(operation)
            case Settle():
                return self._settle(operation)
        return self._void(operation)

    def _reserve(self, reserve: Reserve) -> Verdict:
        record = self.records.get(reserve.reservation_id)
        if record is not None:
            if record.reserve is None:
                return "RESERVATION_VOIDED", ()
            if record.reserve != reserve:
                return "RESERVATION_ID_REUSED", ()
            return record.refusal or ("ok", (record.expires_at, record.remaining))
        made_at_ms = reserve.id_unix_ms
        if made_at_ms < (self.now - HORIZON).timestamp() * 1000:
            return "RESERVATION_ID_TOO_OLD", ()
        if made_at_ms > (self.now + AHEAD).timestamp() * 1000:
            return "RESERVATION_ID_IN_FUTURE", ()
        record = Record("refused", reserve)
        self.records[reserve.reservation_id] = record
        record.refusal = self._admit(reserve, record)
        if record.refusal is None and reserve.pool == "cache":
            record.state = "settled"
        elif record.refusal is None:
            record.state = "held"
            record.expires_at = self.now + timedelta(milliseconds=reserve.ttl_ms)
        return record.refusal or ("ok", (record.expires_at, record.remaining))

    def _admit(self, reserve: Reserve, record: Record) -> Verdict | None:
        path = self.world.path_of(reserve)
        if (barred := self._barred(reserve)) is not None:
            return barred
        places = list(self._places(reserve))
        if reserve.pool == "cache":
            places = [(b, balance) for b, balance in places if b.unit == "requests"]
        elif not any(b.unit == "nano_usd" and b.account_id in path[:3] for b, _ in places):
            return "BUDGET_MISSING", ()
        more = {"nano_usd": reserve.amount_nano_usd, "tokens": reserve.tokens}
        refusal = self._lacks(record, places, more, requests=1)
        if refusal is not None:
            return refusal
        record.places = places
        if reserve.pool == "cache":
            for _, balance in places:
                balance.posted += 1
        else:
            self._take(record, reserve.amount_nano_usd, reserve.tokens, requests=1)
        return None

    def _barred(self, reserve: Reserve) -> Verdict | None:
        """Why nothing may begin or grow on this path, whatever is left."""
        if self.world.accounts[reserve.key_id].revoked:
            return "KEY_REVOKED", ()
        path = self.world.path_of(reserve)
        if any(self.world.accounts[account_id].suspended for account_id in path):
            return "ACCOUNT_SUSPENDED", ()
        return None

    def _places(self, reserve: Reserve) -> Iterator[tuple[BudgetModel, Balance]]:
        """The open windows of the budgets that apply, in the order in which they are asked."""
        for account_id in self.world.path_of(reserve):
            for budget in sorted(self.world.budgets, key=BudgetModel.turn):
                if budget.account_id == account_id and budget.applies(reserve):
                    place = (budget.id, budget.began_at(self.now))
                    yield budget, self.balances.setdefault(place, Balance())

    def _lacks(
        self,
        record: Record,
        places: Sequence[tuple[BudgetModel, Balance]],
        more: dict[str, int],
        requests: int,
    ) -> Verdict | None:
        """Why so much more cannot be had; else sets what is left then."""
        rests = []
        for budget, balance in places:
            if budget.limit is None:
                continue
            need = more.get(budget.unit, requests)
            rest = budget.limit - balance.used
            if need > rest and (need > 0 or requests > 0):
                if budget.unit == "nano_usd":
                    return "BUDGET_EXCEEDED", ()
                # An extension counts in the window of its hold: no later one is its own.
                waits = requests > 0
                return "RATE_LIMITED", (self._wait_seconds(budget, balance, need, waits=waits),)
            if budget.unit == "nano_usd":
                rests.append(rest - need)
        amount = more["nano_usd"]
        for side in (0, 1):
            usable = sum(max(g.rest, 0) for g in self._grants(record.reserve, side))
            if amount > usable and self.world.is_prepaid(record.reserve, side):
                return "CREDIT_EXHAUSTED", ()
        record.remaining = min(rests, default=record.remaining)
        return None

    def _wait_seconds(
        self, budget: BudgetModel, balance: Balance, need: int, *, waits: bool
    ) -> float | None:
        if need > budget.limit or not waits:
            return None
        if budget.unit != "in_flight":
            return (budget.ends_at(self.now) - self.now).total_seconds()
        ends = [
            self._ends_before.get(id(record)) or record.expires_at
            for record in self.records.values()
            if record.state == "held" and any(balance is b for _, b in record.places)
        ]
        return (min(ends) - self.now).total_seconds()

    def _grants(self, reserve: Reserve, side: int) -> list[GrantModel]:
        """Usable ones, in the order in which they are drained."""
        usable = [
            grant
            for grant in self.world.grants
            if grant.account_id in self.world.side_of(reserve, side)
            and grant.starts_at <= self.now < grant.ends_at
            and grant.applies(reserve)
            and (grant.commercial_use or side == 1 or not self.world.is_commercial(reserve))
        ]
        return sorted(usable, key=lambda grant: (grant.ends_at, grant.id))

    def _take(self, record: Record, amount: int, tokens: int, requests: int) -> None:
        record.amount += amount
        record.tokens += tokens
        for budget, balance in record.places:
            balance.held += {"nano_usd": amount, "tokens": tokens}.get(budget.unit, requests)
        for side in (0, 1):
            rest = amount
            for grant in self._grants(record.reserve, side):
                part = min(rest, max(grant.rest, 0))
                if part > 0:
                    grant.held += part
                    rest -= part
                    record.slices.append(Slice(grant, part, side))

    def _extend(self, extend: Extend) -> Verdict:
        record = self.records.get(extend.reservation_id)
        if record is None:
            return "RESERVATION_UNKNOWN", ()
        if _is_strange(extend, record):
            return "RESERVATION_NOT_YOURS", ()
        if record.state != "held":
            return f"RESERVATION_{record.state.upper()}", ()
        amount = max(extend.amount_nano_usd - record.amount, 0)
        tokens = max(extend.tokens - record.tokens, 0)
        if amount or tokens:
            if (barred := self._barred(record.reserve)) is not None:
                return barred
            more = {"nano_usd": amount, "tokens": tokens}
            refusal = self._lacks(record, record.places, more, requests=0)
            if refusal is not None:
                return refusal
            self._take(record, amount, tokens, requests=0)
        ends_at = self.now + timedelta(milliseconds=extend.ttl_ms)
        record.expires_at = max(record.expires_at, ends_at)
        return "ok", (record.expires_at, record.remaining)

    def _settle(self, settle: Settle) -> Verdict:
        record = self.records.get(settle.reservation_id)
        if record is None:
            return "RESERVATION_UNKNOWN", ()
        if _is_strange(settle, record):
            return "RESERVATION_NOT_YOURS", ()
        if record.state in {"refused", "voided"}:
            return f"RESERVATION_{record.state.upper()}", ()
        if record.state == "settled":
            same = record.settle is not None and _usage(record.settle) == _usage(settle)
            return ("ok" if same else "RESERVATION_SETTLED"), record.answer
        self._resolve(record, "settled", settle.amount_nano_usd, settle)
        record.settle = settle
        return "ok", record.answer

    def _void(self, void: Void) -> Verdict:
        record = self.records.get(void.reservation_id)
        if record is None:
            if void.id_unix_ms < (self.now - HORIZON).timestamp() * 1000:
                return "RESERVATION_UNKNOWN", ()
            record = self.records[void.reservation_id] = Record("voided")
        if _is_strange(void, record):
            return "RESERVATION_NOT_YOURS", ()
        if record.state == "settled":
            return "RESERVATION_SETTLED", ()
        if record.state in {"held", "expired"}:
            self._resolve(record, "voided", 0, None)
        return "ok", record.answer

    def _resolve(self, record: Record, state: str, used: int, settle: Settle | None) -> None:
        late = record.state == "expired"
        counted = not late or record.reserve.pool == PAID
        self._move(record, held=-int(not late), suspense=-int(late and counted))
        if settle is not None:
            tokens = settle.prompt_tokens + settle.completion_tokens
            for budget, balance in record.places:
                posted = {"nano_usd": used, "tokens": tokens, "requests": 1}
                balance.posted += posted.get(budget.unit, 0)
            for side in (0, 1):
                _post(record, side, used)
        released = max((record.amount if counted else 0) - used, 0)
        record.state = state
        record.answer = (used, released, used > record.amount, late)

    def _move(self, record: Record, held: int, suspense: int) -> None:
        for budget, balance in record.places:
            amount = record.held_in(budget.unit)
            balance.held += held * amount
            # What is in flight no longer is not in doubt: it is over.
            balance.suspense += 0 if budget.unit == "in_flight" else suspense * amount
        for one in record.slices:
            one.grant.held += held * one.amount
            one.grant.suspense += suspense * one.amount


def _usage(settle: Settle) -> Settle:
    """What is compared: not who says so, and in which trace."""
    return replace(settle, trace_id="", key_id=None)


def _is_strange(operation: Extend | Settle | Void, record: Record) -> bool:
    """Whether another key asks than the one that reserved."""
    if operation.key_id is None or record.reserve is None:
        return False
    return operation.key_id != record.reserve.key_id


def _post(record: Record, side: int, used: int) -> None:
    """Credit pays before the budget does; beyond the hold only where it was all of the hold."""
    slices = [one for one in record.slices if one.side == side]
    rest = used
    for one in slices:
        part = min(one.amount, rest)
        one.grant.posted += part
        rest -= part
    if slices and sum(one.amount for one in slices) == record.amount:
        slices[-1].grant.posted += rest
