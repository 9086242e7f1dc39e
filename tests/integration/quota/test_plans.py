"""On a filled ledger, neither an operation nor a read goes through a table from end to end."""

import asyncpg
import pytest

from load.fill_ledger import fill
from penstock.core.postgres_server import PrivateServer
from support.ledger import migrated_database
from support.plans import scans_of_operations, scans_of_reads, scans_while

ACCOUNTS = 2_000
ENTRIES = 40_000
"""Enough that PostgreSQL would rather read a whole table than what an index cannot find."""


@pytest.fixture
async def filled(postgres_server: PrivateServer) -> tuple[str, list[int]]:
    """DSN, and some keys."""
    dsn = await migrated_database(postgres_server)
    made = await fill(dsn, accounts=ACCOUNTS, entries=ENTRIES)
    return dsn, [made.first_key_id + n * 20 for n in range(50)]


async def test_no_operation_scans_a_table(filled: tuple[str, list[int]]) -> None:
    dsn, key_ids = filled
    connection = await asyncpg.connect(dsn)
    try:
        assert await scans_of_operations(connection, key_ids) == []
        # The counters do see what runs within functions.
        await connection.execute(
            "CREATE FUNCTION scan() RETURNS bigint LANGUAGE sql"
            " AS 'SELECT count(*) FROM reservations WHERE posted = 1'"
        )
        assert await scans_while(connection, "SELECT scan()") == ["reservations"]
    finally:
        await connection.close()


async def test_no_read_of_entries_scans_a_table(filled: tuple[str, list[int]]) -> None:
    dsn, _ = filled
    connection = await asyncpg.connect(dsn)
    try:
        found = await scans_of_reads(connection)
    finally:
        await connection.close()
    assert [] == [table for tables in found.values() for table in tables], found
