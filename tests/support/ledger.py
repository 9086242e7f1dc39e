"""A real ledger for tests: its own database, accounts in one line, a clock that stands still."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from penstock.core import postgres
from penstock.core.ids import uuid7, uuid7_unix_ms
from penstock.core.postgres_server import PrivateServer
from penstock.quota.account import KeyPolicy, new_secret
from penstock.quota.audit import AuditReport, audit_dsn
from penstock.quota.ledger import Answer, Operation, Reserve, Settle, Void
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.database import MIGRATIONS, Database
from penstock.quota.store.ledger_store import LedgerStore, Outcome, Timed
from support.postgres import fresh_database

__all__ = ["Ledger", "ledger", "ledger_dsn", "migrated_database"]

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LIMIT = 100
"""Nano-USD of a test's budget: small, so that sums can be read."""
SUSPEND = "UPDATE accounts SET suspended = true WHERE id = "
OPEN_POLICY = KeyPolicy((), local_only=False, fail_open_local=False, expires_at=None)


async def migrated_database(server: PrivateServer) -> str:
    """DSN of a new ledger database on the real clock."""
    dsn = await fresh_database(server)
    await postgres.migrate(dsn, MIGRATIONS)
    return dsn


@dataclass
class Ledger:
    """The stores over one database whose clock a test moves."""

    dsn: str
    database: Database
    store: LedgerStore
    accounts: AccountStore
    _names: "itertools.count[int]" = field(default_factory=itertools.count)
    now: datetime = START

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

    async def new_path(self) -> tuple[int, int, int]:
        """Ids of a new organisation, its team and its key, without budgets."""
        n = next(self._names)
        suffix = f"{n}-{uuid7()[-12:]}"
        org = await self.accounts.create_account("org", f"org-{suffix}", None)
        team = await self.accounts.create_account("team", "team", org.id)
        key = await self.accounts.create_key(team.id, "key", OPEN_POLICY, new_secret())
        return org.id, team.id, key.id

    async def new_key(self, limit: int | None, window: str = "total", zone: str = "UTC") -> int:
        """A key with one budget of its own."""
        _, _, key_id = await self.new_path()
        await self.budget("key", key_id, limit, window, zone)
        return key_id

    async def budget(
        self,
        kind: str,
        account_id: int,
        limit: int | None,
        window: str = "total",
        zone: str = "UTC",
    ) -> None:
        await self.accounts.set_budget(
            (kind, account_id),  # type: ignore[arg-type]
            window,  # type: ignore[arg-type]
            name=f"{kind} {window}",
            time_zone=zone,
            limit_nano_usd=limit,
        )

    async def balances(self, kind: str, account_id: int, window: str = "total") -> tuple[int, ...]:
        """posted, held, suspense of the open window."""
        budgets = await self.accounts.list_budgets(account_id)
        (found,) = [b for b in budgets if b.window == window and b.account_kind == kind]
        return found.posted_nano_usd, found.held_nano_usd, found.suspense_nano_usd

    async def apply(self, *operations: Operation) -> list[Outcome]:
        return await self.store.apply([Timed(operation) for operation in operations])

    async def one(self, operation: Operation) -> Outcome:
        (outcome,) = await self.apply(operation)
        return outcome

    async def audit(self) -> AuditReport:
        return await audit_dsn(self.dsn)

    def id(self) -> str:
        return uuid7(int(self.now.timestamp() * 1000))


def reserve(id_: str, key_id: int, amount: int = 10, **changes: Any) -> Reserve:
    fields: dict[str, Any] = {
        "request_id": "req_1",
        "attempt": 1,
        "pool": "paid",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "ttl_ms": 60_000,
        "end_user": "",
        "tags": {},
    }
    return Reserve(
        reservation_id=id_,
        id_unix_ms=uuid7_unix_ms(id_),
        key_id=key_id,
        amount_nano_usd=amount,
        **(fields | changes),
    )


def settle(id_: str, amount: int, **changes: Any) -> Settle:
    fields: dict[str, Any] = {
        "prompt_tokens": 7,
        "cached_prompt_tokens": 0,
        "completion_tokens": 5,
        "reasoning_tokens": 0,
        "estimated": False,
        "outcome": "ok",
        "trace_id": "",
    }
    return Settle(
        reservation_id=id_,
        id_unix_ms=uuid7_unix_ms(id_),
        amount_nano_usd=amount,
        **(fields | changes),
    )


def void(id_: str, outcome: str = "CANCELLED") -> Void:
    return Void(reservation_id=id_, id_unix_ms=uuid7_unix_ms(id_), outcome=outcome)


def told(outcome: Outcome) -> str:
    """The reason of an error, or "ok"."""
    return "ok" if isinstance(outcome, Answer) else outcome.reason


async def held(ledger: Ledger, key_id: int, pool: str) -> str:
    """The id of a reservation of 40 that is not resolved."""
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, key_id, 40, pool=pool))) == "ok"
    return id_


async def expired(ledger: Ledger, key_id: int, pool: str) -> str:
    """The same, its time over."""
    id_ = await held(ledger, key_id, pool)
    await ledger.advance(timedelta(minutes=2))
    return id_


@pytest.fixture(scope="session")
def ledger_dsn(postgres_server: PrivateServer) -> str:
    """One database a session, on a clock that stands still; each test makes its own accounts."""

    async def make() -> str:
        dsn = await migrated_database(postgres_server)
        connection = await asyncpg.connect(dsn)
        await connection.execute(
            """
            CREATE TABLE test_clock (at timestamptz);
            INSERT INTO test_clock VALUES (clock_timestamp());
            CREATE OR REPLACE FUNCTION ledger_now() RETURNS timestamptz
            LANGUAGE sql VOLATILE AS 'SELECT at FROM test_clock';
            """
        )
        await connection.close()
        return dsn

    return asyncio.run(make())


@pytest.fixture
async def ledger(ledger_dsn: str) -> AsyncIterator[Ledger]:
    """The session's ledger at START; whatever the test did, it must pass the audit."""
    database = await Database.open(ledger_dsn)
    ledger = Ledger(ledger_dsn, database, LedgerStore(database), AccountStore(database))
    await ledger.set_clock(START)
    yield ledger
    report = await ledger.audit()
    await database.close()
    assert report.ok, [check for check in report.checks if check.findings]
