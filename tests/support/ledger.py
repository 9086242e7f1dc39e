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
from penstock.quota.budget import EVERYTHING, BudgetWish, GrantWish, Scope
from penstock.quota.ledger import Answer, Extend, Operation, Reserve, Settle, Void
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.adjust_store import AdjustStore
from penstock.quota.store.budget_store import BudgetStore
from penstock.quota.store.changes import Change
from penstock.quota.store.database import MIGRATIONS, Database
from penstock.quota.store.grant_store import GrantStore
from penstock.quota.store.ledger_store import LedgerStore, Outcome, Timed
from penstock.quota.store.pool_store import PoolStore
from support.postgres import fresh_database

__all__ = ["Ledger", "clocked_database", "ledger", "ledger_dsn", "migrated_database"]

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LIMIT = 100
"""Nano-USD of a test's budget: small, so that sums can be read."""
SUSPEND = "UPDATE accounts SET suspended = true WHERE id = "
BY_TEST = Change(actor="test", reason="a test")
OPEN_POLICY = KeyPolicy((), local_only=False, fail_open_local=False, expires_at=None)
_STOPPED_CLOCK = """
    CREATE TABLE test_clock (at timestamptz);
    INSERT INTO test_clock VALUES (clock_timestamp());
    CREATE OR REPLACE FUNCTION ledger_now() RETURNS timestamptz
    LANGUAGE sql VOLATILE AS 'SELECT at FROM test_clock';
"""


async def migrated_database(server: PrivateServer) -> str:
    """DSN of a new ledger database on the real clock."""
    dsn = await fresh_database(server)
    await postgres.migrate(dsn, MIGRATIONS)
    return dsn


async def clocked_database(server: PrivateServer) -> str:
    """DSN of a new ledger database on a clock that stands still until a test moves it."""
    dsn = await migrated_database(server)
    connection = await asyncpg.connect(dsn)
    await connection.execute(_STOPPED_CLOCK)
    await connection.close()
    return dsn


@dataclass
class Ledger:
    """The stores over one database whose clock a test moves."""

    dsn: str
    database: Database
    store: LedgerStore
    accounts: AccountStore
    budgets: BudgetStore
    grants: GrantStore
    pools: PoolStore
    adjustments: AdjustStore
    _names: "itertools.count[int]" = field(default_factory=itertools.count)
    now: datetime = START

    @classmethod
    async def open(cls, dsn: str) -> "Ledger":
        return cls.over(dsn, await Database.open(dsn))

    @classmethod
    def over(cls, dsn: str, database: Database) -> "Ledger":
        return cls(
            dsn,
            database,
            LedgerStore(database),
            AccountStore(database),
            BudgetStore(database),
            GrantStore(database),
            PoolStore(database),
            AdjustStore(database),
        )

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

    async def new_path(self, **org: bool) -> tuple[int, int, int]:
        """Ids of a new organisation (`prepaid`, `commercial`), its team and its key, no budgets."""
        n = next(self._names)
        suffix = f"{n}-{uuid7()[-12:]}"
        org_ = await self.accounts.create_account(BY_TEST, "org", f"org-{suffix}", None, **org)
        team = await self.accounts.create_account(BY_TEST, "team", "team", org_.id)
        return org_.id, team.id, await self.another_key(team.id)

    async def another_key(self, team_id: int) -> int:
        key = await self.accounts.create_key(BY_TEST, team_id, "key", OPEN_POLICY, new_secret())
        return key.id

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
        zone: str | None = "UTC",
        *,
        unit: str = "nano_usd",
        scope: Scope | None = None,
        name: str = "",
        soft_percents: tuple[int, ...] = (),
    ) -> int:
        """Sets a budget (or a rate limit: `unit`); its id."""
        wish = BudgetWish(
            account_kind=kind,
            account_id=account_id,
            unit=unit,
            window=window,
            name=name or f"{kind} {unit} {window}",
            time_zone=zone,
            limit=limit,
            scope=scope,
            soft_percents=soft_percents,
        )
        _, made = await self.budgets.set_budget(BY_TEST, wish)
        return made.id

    async def grant(
        self,
        kind: str,
        account_id: int,
        amount: int,
        *,
        starts_in: timedelta | None = None,
        ends_in: timedelta | None = None,
        scope: Scope = EVERYTHING,
        commercial_use: bool = True,
    ) -> int:
        """A grant from now (or later) for ever (or for so long); its id."""
        wish = GrantWish(
            grant_key=uuid7(),
            account_kind=kind,
            account_id=account_id,
            name="credit",
            reason="a test",
            amount_nano_usd=amount,
            starts_at=None if starts_in is None else self.now + starts_in,
            expires_at=None if ends_in is None else self.now + ends_in,
            scope=scope,
            commercial_use=commercial_use,
        )
        grant, _ = await self.grants.create_grant(BY_TEST, wish)
        return grant.id

    async def pool(self, *, prepaid: bool = False, providers: int = 1) -> tuple[int, list[str]]:
        """A new pool of so many new providers: its id, their names."""
        names = [f"provider-{next(self._names)}-{uuid7()[-12:]}" for _ in range(providers)]
        pool = await self.pools.set_pool(
            BY_TEST, names[0].replace("provider", "pool"), names, prepaid=prepaid
        )
        return pool.id, names

    async def balances(
        self, kind: str, account_id: int, window: str = "total", unit: str = "nano_usd"
    ) -> tuple[int, ...]:
        """posted, held, suspense of the open window."""
        rows = await self.fetch(
            "SELECT coalesce(b.posted, 0), coalesce(b.held, 0), coalesce(b.suspense, 0)"
            " FROM budgets x JOIN accounts a ON a.id = x.account_id LEFT JOIN buckets b"
            " ON b.budget_id = x.id"
            " AND b.window_key = window_key(x.kind, x.time_zone, ledger_now())"
            " WHERE a.id = $1 AND a.kind = $2::account_kind AND x.kind = $3::window_kind"
            " AND x.unit = $4::budget_unit",
            account_id,
            kind,
            window,
            unit,
        )
        (row,) = rows
        return tuple(row)

    async def credit(self, grant_id: int) -> tuple[int, ...]:
        """posted, held, suspense, lapsed of a grant."""
        (row,) = await self.fetch(
            "SELECT posted, held, suspense, lapsed FROM buckets WHERE grant_id = $1", grant_id
        )
        return tuple(row)

    async def apply(self, *operations: Operation) -> list[Outcome]:
        return await self.store.apply([Timed(operation) for operation in operations])

    async def entries_of(self, operation: str, account_id: int) -> list[asyncpg.Record]:
        """The account's entries of this operation, newest first."""
        return await self.fetch(
            "SELECT * FROM entries WHERE account_id = $1 AND operation = $2 ORDER BY id DESC",
            account_id,
            operation,
        )

    async def is_blocked(self) -> bool:
        """Whether somebody waits for a lock in this database."""
        query = (
            "SELECT FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(await self.fetch(query))

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
        "tokens": 0,
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


def extend(
    id_: str, amount: int, tokens: int = 0, ttl_ms: int = 60_000, key_id: int | None = None
) -> Extend:
    """To this much in all."""
    return Extend(id_, uuid7_unix_ms(id_), amount, tokens, ttl_ms, key_id)


def cache_hit(id_: str, key_id: int, **changes: Any) -> Reserve:
    return reserve(id_, key_id, 0, pool="cache", **changes)


def void(id_: str, outcome: str = "CANCELLED", key_id: int | None = None) -> Void:
    return Void(id_, uuid7_unix_ms(id_), outcome, key_id)


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
    return asyncio.run(clocked_database(postgres_server))


@pytest.fixture
async def ledger(ledger_dsn: str) -> AsyncIterator[Ledger]:
    """The session's ledger at START; whatever the test did, it must pass the audit."""
    ledger = await Ledger.open(ledger_dsn)
    await ledger.set_clock(START)
    yield ledger
    report = await ledger.audit()
    await ledger.database.close()
    assert [] == report.findings
