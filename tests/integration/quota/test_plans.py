"""On a filled ledger, neither an operation nor a read goes through a table from end to end."""

import asyncpg
import pytest

from load.fill_ledger import fill
from penstock.core.postgres_server import PrivateServer
from support.ledger import migrated_database
from support.plans import (
    apply_each_operation,
    rows_read_by_operations,
    scans_of_operations,
    scans_of_reads,
    scans_while,
)

ACCOUNTS = 2_000
ENTRIES = 40_000
"""Enough that PostgreSQL would rather read a whole table than what an index cannot find."""
GROWTH = 200
ROWS_MAX = 30
"""Through one index, of each key's operations: each looks up what it needs a few times."""


@pytest.fixture
async def filled(postgres_server: PrivateServer) -> tuple[str, list[int]]:
    """DSN, and some keys."""
    dsn = await migrated_database(postgres_server)
    made = await fill(dsn, accounts=ACCOUNTS, entries=ENTRIES)
    return dsn, [made.first_key_id + n * 20 for n in range(50)]


async def test_no_operation_scans_a_table_or_an_index(filled: tuple[str, list[int]]) -> None:
    dsn, key_ids = filled
    connection = await asyncpg.connect(dsn)
    try:
        assert await scans_of_operations(connection, key_ids) == []
        read = await rows_read_by_operations(connection, key_ids)
        assert max(read.values()) <= ROWS_MAX * len(key_ids), read
        # The counters do see what runs within functions.
        await connection.execute(
            "CREATE FUNCTION scan() RETURNS bigint LANGUAGE sql"
            " AS 'SELECT count(*) FROM reservations WHERE posted = 1'"
        )
        assert await scans_while(connection, "SELECT scan()") == ["reservations"]
    finally:
        await connection.close()


async def test_plans_made_for_an_empty_ledger_do_not_read_a_grown_one(
    postgres_server: PrivateServer,
) -> None:
    dsn = await migrated_database(postgres_server)
    # It also has PostgreSQL know that the tables are empty.
    made = await fill(dsn, accounts=10, entries=0)
    key_ids = [made.first_key_id + n for n in range(10)]
    early, later = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        await apply_each_operation(early, key_ids)
        for _ in range(GROWTH):
            await apply_each_operation(later, key_ids)
        read = await rows_read_by_operations(early, key_ids)
        assert max(read.values()) <= ROWS_MAX * len(key_ids), read
    finally:
        await early.close()
        await later.close()


async def test_no_read_of_entries_scans_a_table(filled: tuple[str, list[int]]) -> None:
    dsn, _ = filled
    connection = await asyncpg.connect(dsn)
    try:
        found = await scans_of_reads(connection)
    finally:
        await connection.close()
    assert [] == [table for tables in found.values() for table in tables], found
