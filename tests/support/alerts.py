"""A ledger's database for tests of alerts: rows are put in by hand, its clock stands still."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from penstock.core.ids import uuid7
from penstock.core.postgres_server import PrivateServer
from penstock.quota.alerts.alert import Alert
from penstock.quota.alerts.alert_store import AlertStore
from penstock.quota.alerts.config import Webhook
from penstock.quota.alerts.evaluator import Evaluator
from penstock.quota.alerts.loop import Alerts
from penstock.quota.alerts.post import Poster
from penstock.quota.store.database import Database
from support.clock import HandClock
from support.ledger import clocked_database
from support.webhook_receiver import Receiver

__all__ = ["Books", "books"]

START = datetime(2026, 11, 10, 12, 0, tzinfo=UTC)
SECRET = b"a secret of at least 24 bytes"
DAY = timedelta(days=1)


def an_alert(kind: str = "overage", account: str = "key acme/search/ci", **detail: Any) -> Alert:
    return Alert(7, kind, START, "key_9", account, detail)


def webhook(receiver: Receiver, shape: Any = "generic") -> Webhook:
    return Webhook(receiver.url, shape, f"127.0.0.1:{receiver.port}")


@dataclass
class Books:
    """One database of its own."""

    dsn: str
    database: Database
    now: datetime = START
    clock: HandClock = field(default_factory=lambda: HandClock(START.timestamp()))

    async def set_clock(self, now: datetime) -> None:
        self.now = now
        await self.execute("UPDATE test_clock SET at = $1", now)

    async def advance(self, delta: timedelta) -> None:
        await self.set_clock(self.now + delta)

    async def execute(self, query: str, *arguments: Any) -> None:
        async with self.database.connection() as connection:
            await connection.execute(query, *arguments)

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self.database.connection() as connection:
            return await connection.fetch(query, *arguments)

    async def value(self, query: str, *arguments: Any) -> Any:
        async with self.database.connection() as connection:
            return await connection.fetchval(query, *arguments)

    async def account(
        self, kind: str, name: str, org: int | None = None, team: int | None = None
    ) -> int:
        created: int = await self.value(
            "INSERT INTO accounts (kind, name, org_id, team_id, created_at)"
            " VALUES ($1::account_kind, $2, $3, $4, ledger_now()) RETURNING id",
            kind, name, org, team,
        )  # fmt: skip
        return created

    async def path(self) -> tuple[int, int, int]:
        """Organisation acme, its team search, its key ci."""
        org = await self.account("org", "acme")
        team = await self.account("team", "search", org)
        return org, team, await self.account("key", "ci", org, team)

    async def spending(
        self, account: int, kind: str, *, spent: int, limit: int | None, zone: str = "UTC"
    ) -> int:
        """A budget, `spent` posted in its open window; the bucket's id."""
        budget = await self.value(
            "INSERT INTO budgets (account_id, name, unit, kind, time_zone, limit_amount,"
            " created_at) VALUES ($1, $2, 'nano_usd', $3::window_kind, $4, $5, ledger_now())"
            " RETURNING id",
            account, kind, kind, zone, limit,
        )  # fmt: skip
        bucket: int = await self.value(
            "INSERT INTO buckets (budget_id, unit, window_key, posted)"
            " VALUES ($1, 'nano_usd', window_key($2::window_kind, $3, ledger_now()), $4)"
            " RETURNING id",
            budget, kind, zone, spent,
        )  # fmt: skip
        return bucket

    async def suspected(self, org: int, key: int, amount: int, resolved_at: datetime) -> str:
        """A paid hold that expired then; its id."""
        id_ = uuid7()
        await self.execute(
            "INSERT INTO reservations (id, state, created_at, epoch, org_id, key_id, pool,"
            " provider, model, amount, resolved_at) VALUES ($1, 'expired', $2, 1, $3, $4, 'paid',"
            " 'openai', 'gpt-4o-mini', $5, $2)",
            id_, resolved_at, org, key, amount,
        )  # fmt: skip
        return id_

    async def grant(
        self, account: int, *, amount: int, posted: int, starts_at: datetime, expires_at: datetime
    ) -> int:
        grant: int = await self.value(
            "INSERT INTO grants (grant_key, account_id, name, reason, amount, starts_at,"
            " expires_at, commercial_use, created_at)"
            " VALUES ($1, $2, 'trial', 'test', $3, $4, $5, true, ledger_now()) RETURNING id",
            uuid7(), account, amount, starts_at, expires_at,
        )  # fmt: skip
        await self.execute(
            "INSERT INTO buckets (grant_id, unit, posted) VALUES ($1, 'nano_usd', $2)",
            grant, posted,
        )  # fmt: skip
        return grant

    async def overage(self, key: int) -> int:
        """An alert as the ledger itself records it; its id."""
        reservation = uuid7()
        detail = {"reservation_id": reservation, "amount_nano_usd": 10, "posted_nano_usd": 12}
        created: int = await self.value(
            "INSERT INTO alerts (alert_key, kind, at, account_id, detail)"
            " VALUES ($1, 'overage', ledger_now(), $2, $3::jsonb) RETURNING id",
            f"overage:{reservation}", key, json.dumps(detail),
        )  # fmt: skip
        return created

    async def facts(self, kind: str) -> list[dict[str, Any]]:
        """Details of the alerts of a kind, oldest first."""
        rows = await self.fetch("SELECT detail::text FROM alerts WHERE kind = $1 ORDER BY id", kind)
        return [json.loads(row["detail"]) for row in rows]

    async def evaluate(self) -> None:
        """All checks, as if none had run for a while."""
        await self.execute("UPDATE alert_checks SET ran_at = '-infinity'")
        await Evaluator(self.database, suspense_age=DAY).run()

    def alerts(self, *webhooks: Webhook, telemetry: Any = None, post_seconds: float = 5) -> Alerts:
        """A process's part, to be driven by hand."""
        return Alerts(
            AlertStore(self.database),
            Evaluator(self.database, suspense_age=DAY),
            Poster((SECRET,), self.clock, post_seconds=post_seconds),
            self.clock,
            webhooks,
            lambda: 0.5,
            telemetry,
        )


@pytest.fixture
async def books(postgres_server: PrivateServer) -> AsyncIterator[Books]:
    dsn = await clocked_database(postgres_server)
    books = Books(dsn, await Database.open(dsn))
    await books.set_clock(START)
    yield books
    await books.database.close()
