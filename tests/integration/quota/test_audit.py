"""The audit finds what it claims to find: each invariant is broken by hand."""

import asyncpg
import pytest

from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.database import Database
from penstock.quota.store.ledger_store import LedgerStore
from support.ledger import Ledger, migrated_database, reserve, settle

UNGUARD = (
    "ALTER TABLE entries DISABLE TRIGGER ALL; ALTER TABLE entries DROP CONSTRAINT entries_check; "
)
BREAKS = [
    ("UPDATE buckets SET posted = posted + 1", "each balance is the fold"),
    ("UPDATE buckets SET held = 5", "each balance is the fold"),
    ("UPDATE reservations SET state = 'held' WHERE state = 'settled'", "each reservation"),
    ("UPDATE reservations SET posted = posted + 1 WHERE state = 'settled'", "each reservation"),
    (
        UNGUARD + "DELETE FROM entries WHERE operation = 'settle'",
        "each reservation",
    ),
    ("UPDATE budgets SET limit_nano_usd = 1", "each overage"),
    (
        UNGUARD + "UPDATE entries SET available = available + 1",
        "each entry's debits",
    ),
]


@pytest.fixture
async def used_database(postgres_server: PrivateServer):
    dsn = await migrated_database(postgres_server)
    database = await Database.open(dsn)
    ledger = Ledger(dsn, database, LedgerStore(database), AccountStore(database))
    key_id = await ledger.new_key(100)
    first, second = ledger.id(), ledger.id()
    await ledger.apply(reserve(first, key_id), settle(first, 7), reserve(second, key_id))
    await database.close()
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def test_a_sound_ledger_passes(used_database: asyncpg.Connection) -> None:
    report = await audit(used_database)

    assert report.ok
    assert (3, 2, 1, 7) == (
        report.entries,
        report.reservations,
        report.buckets,
        report.posted_nano_usd,
    )


@pytest.mark.parametrize(("change", "check"), BREAKS)
async def test_a_broken_ledger_is_found(
    used_database: asyncpg.Connection, change: str, check: str
) -> None:
    await used_database.execute(change)

    report = await audit(used_database)

    assert not report.ok
    assert any(c.findings for c in report.checks if c.name.startswith(check))
