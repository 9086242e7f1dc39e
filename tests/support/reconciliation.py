"""A ledger whose attempts have a known true cost, and the export that a provider makes of them."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from penstock.core.clock import SystemClock
from penstock.quota.batcher import Batcher
from penstock.quota.reconcile.admin import ReconcileAdmin
from penstock.quota.store.changes import Change
from penstock.quota.v1 import admin_pb2
from support.ledger import Ledger, reserve, settle, told

BY_ACCOUNTANT = Change(actor="accountant", reason="November")
BOUND = 1_000
DATED = {"gpt-4o-mini": "gpt-4o-mini-2024-07-18", "gpt-4o": "gpt-4o-2024-08-06", "o3": "o3"}

DayModel = tuple[date, str]


@dataclass
class World:
    """What happened, by day and model: what is exact, and what the provider bills in truth."""

    ledger: Ledger
    exact: dict[DayModel, int] = field(default_factory=lambda: defaultdict(int))
    billed: dict[DayModel, int] = field(default_factory=lambda: defaultdict(int))
    requests: dict[DayModel, int] = field(default_factory=lambda: defaultdict(int))
    bounds: dict[DayModel, int] = field(default_factory=lambda: defaultdict(int))
    ids: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def today(self) -> date:
        return self.ledger.now.date()

    async def exactly(self, key_id: int, cost: int, model: str = "gpt-4o-mini") -> str:
        id_ = await self._reserved(key_id, model)
        assert told(await self.ledger.one(settle(id_, cost))) == "ok"
        self._note("exact", id_, model, cost)
        self.exact[self.today, model] += cost
        return id_

    async def cancelled(
        self, key_id: int, cost: int, model: str = "gpt-4o-mini", bound: int = BOUND
    ) -> str:
        """A stream that was cut: settled by its bound, though the provider bills less."""
        id_ = await self._reserved(key_id, model)
        assert told(await self.ledger.one(settle(id_, bound, estimated=True))) == "ok"
        self._note("estimated", id_, model, cost)
        self.bounds[self.today, model] += bound
        return id_

    async def lost(self, key_id: int, cost: int, model: str = "gpt-4o-mini") -> str:
        """Its settle never came: it expires, into suspense."""
        id_ = await self._reserved(key_id, model)
        self._note("lost", id_, model, cost)
        self.bounds[self.today, model] += BOUND
        return id_

    async def next_day(self) -> None:
        tomorrow = self.today + timedelta(days=1)
        await self.ledger.set_clock(
            datetime(tomorrow.year, tomorrow.month, tomorrow.day, 9, tzinfo=UTC)
        )

    async def _reserved(self, key_id: int, model: str) -> str:
        id_ = self.ledger.id()
        assert told(await self.ledger.one(reserve(id_, key_id, BOUND, model=model))) == "ok"
        return id_

    def _note(self, how: str, id_: str, model: str, cost: int) -> None:
        self.ids[how].append(id_)
        self.billed[self.today, model] += cost
        self.requests[self.today, model] += 1

    def export(self, **projects: str) -> list[admin_pb2.ReportedRow]:
        """As the provider tells it, by dated model; a day's sum in two rows."""
        rows = []
        for (day, model), amount in sorted(self.billed.items()):
            for part in (amount // 3, amount - amount // 3):
                requests = self.requests[day, model] if part == amount // 3 else 0
                rows.append(row(day, DATED.get(model, model), part, requests=requests, **projects))
        return rows

    async def standing(self) -> tuple[int, int, int]:
        """Posted and in suspense over all money buckets of budgets; adjusting entries."""
        (found,) = await self.ledger.fetch(
            "SELECT coalesce(sum(posted), 0)::bigint AS posted,"
            " coalesce(sum(suspense), 0)::bigint AS suspense,"
            " (SELECT count(*) FROM entries WHERE operation IN ('adjust', 'late_settle'))"
            " AS entries"
            " FROM buckets WHERE unit = 'nano_usd' AND budget_id IS NOT NULL"
        )
        return found["posted"], found["suspense"], found["entries"]

    async def amounts(self, *ids: str) -> list[int]:
        rows = await self.ledger.fetch(
            "SELECT posted + adjusted AS amount FROM reservations"
            " JOIN unnest($1::uuid[]) WITH ORDINALITY AS u (id, place) USING (id) ORDER BY place",
            list(ids),
        )
        return [r["amount"] for r in rows]


def row(day: date, model: str, amount: int, **fields: Any) -> admin_pb2.ReportedRow:
    found = admin_pb2.ReportedRow(model=model, amount_nano_usd=amount, **fields)
    found.day.FromDatetime(datetime(day.year, day.month, day.day, tzinfo=UTC))
    return found


def options(since: date, until: date, **fields: Any) -> admin_pb2.ReconcileOptions:
    found = admin_pb2.ReconcileOptions(provider="openai", **fields)
    found.since.FromDatetime(datetime(since.year, since.month, since.day, tzinfo=UTC))
    found.until.FromDatetime(datetime(until.year, until.month, until.day, tzinfo=UTC))
    return found


async def messages(
    first: admin_pb2.ReconcileOptions, rows: Iterable[admin_pb2.ReportedRow], size: int = 3
) -> AsyncIterator[admin_pb2.ReconcileRequest]:
    yield admin_pb2.ReconcileRequest(options=first)
    listed = list(rows)
    for n in range(0, len(listed), size):
        part = admin_pb2.ReportedRows(rows=listed[n : n + size])
        yield admin_pb2.ReconcileRequest(rows=part)


def handler(ledger: Ledger, apply: Any = None) -> ReconcileAdmin:
    """`apply`: what settles, in place of the ledger's batches."""
    batcher = apply or Batcher(ledger.store, SystemClock())
    return ReconcileAdmin(ledger.database, batcher, ledger.store, ledger.adjustments)


async def reconcile(
    ledger: Ledger,
    rows: Iterable[admin_pb2.ReportedRow],
    since: date,
    until: date,
    *,
    change: Change = BY_ACCOUNTANT,
    apply: Any = None,
    **fields: Any,
) -> admin_pb2.ReconcileReport:
    """The report at the end."""
    last = admin_pb2.ReconcileResponse()
    async with asyncio.timeout(60):
        answers = handler(ledger, apply).reconcile(
            messages(options(since, until, **fields), rows), change
        )
        async for answer in answers:
            last = answer
    assert last.HasField("report")
    assert last.rows_done == last.rows_total
    return last.report


def drifts(report: admin_pb2.ReconcileReport) -> dict[DayModel, int]:
    """Those that are not 0."""
    return {
        (one.day.ToDatetime().date(), one.model): one.drift_nano_usd
        for one in report.drifts
        if one.drift_nano_usd
    }


async def random_world(ledger: Ledger, seed: int, attempts: int = 40, days: int = 3) -> World:
    """Attempts of every kind on several days, by two keys and three models."""
    chance = random.Random(seed)
    world = World(ledger)
    keys = [await ledger.new_key(None), await ledger.new_key(None)]
    for _ in range(days):
        for _ in range(attempts // days):
            key_id, model = chance.choice(keys), chance.choice(list(DATED))
            kind = chance.choice((world.exactly, world.cancelled, world.lost))
            await kind(key_id, chance.choice((0, BOUND, chance.randint(0, BOUND))), model)
        await world.next_day()
    return world
