"""Sequential scans: what PostgreSQL counted in operations, and what EXPLAIN says of reads."""

import json
from collections.abc import Sequence
from typing import Any

import asyncpg

from penstock.core.ids import uuid7, uuid7_unix_ms
from penstock.quota.ledger import Extend, Reserve, Settle, Void
from penstock.quota.store.entry_store import EntryFilter, entries_query
from penstock.quota.store.ledger_store import Timed, apply_on

PAGE_ROWS = 100


async def scans_of_operations(connection: asyncpg.Connection, key_ids: Sequence[int]) -> list[str]:
    """Tables that one batch of each operation on each key read from end to end.

    What runs within a function has no EXPLAIN: PostgreSQL's own counters tell. Others must leave
    the database alone meanwhile.
    """
    before = await _scans(connection)
    await apply_each_operation(connection, key_ids)
    return _more(before, await _scans(connection))


async def rows_read_by_operations(
    connection: asyncpg.Connection, key_ids: Sequence[int]
) -> dict[str, int]:
    """By index, the rows that one batch of each operation on each key read through it."""
    before = await _rows_read(connection)
    await apply_each_operation(connection, key_ids)
    after = await _rows_read(connection)
    return {index: rows - before[index] for index, rows in after.items()}


async def scans_while(connection: asyncpg.Connection, statement: str) -> list[str]:
    """Tables that one statement read from end to end, whatever runs within it."""
    before = await _scans(connection)
    await connection.execute(statement)
    return _more(before, await _scans(connection))


async def scans_of_reads(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """By each filter of entries: the tables that its plan reads from end to end."""
    row = await connection.fetchrow(
        "SELECT r.request_id, r.id, r.key_id, a.team_id, a.org_id FROM reservations r"
        " JOIN accounts a ON a.id = r.key_id LIMIT 1"
    )
    assert row is not None, "the ledger is empty"
    filters = {
        "newest": EntryFilter(),
        "request": EntryFilter(request_id=row["request_id"]),
        "reservation": EntryFilter(reservation_id=str(row["id"])),
        "key": EntryFilter(key_id=row["key_id"]),
        "team": EntryFilter(account=("team", row["team_id"])),
        "organisation": EntryFilter(account=("org", row["org_id"])),
    }
    found = {}
    for name, wanted in filters.items():
        query, arguments = entries_query(wanted, before_id=None, rows_max=PAGE_ROWS)
        async with connection.transaction():
            # As EntryStore asks.
            await connection.execute("SET LOCAL enable_seqscan = off")
            await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query}", *arguments)
        found[name] = sorted(_sequential(json.loads(text)[0]["Plan"]))
    return found


async def apply_each_operation(connection: asyncpg.Connection, key_ids: Sequence[int]) -> None:
    """A batch of reserves, one of extends, one of settles, one of voids."""
    ids = [uuid7() for _ in key_ids]
    voided = [uuid7() for _ in key_ids]
    reserves = [
        Reserve(
            *(id_, uuid7_unix_ms(id_), f"req_{id_}", 1, key_id, "paid", "openai", "gpt-4o-mini"),
            *(10, 10, 60_000, "", {}),
        )
        for some in (ids, voided)
        for id_, key_id in zip(some, key_ids, strict=True)
    ]
    extends = [
        Extend(id_, uuid7_unix_ms(id_), 20, 20, 60_000, key_id)
        for id_, key_id in zip(ids, key_ids, strict=True)
    ]
    settles = [
        Settle(id_, uuid7_unix_ms(id_), 15, 5, 0, 5, 0, False, "ok", "", key_id)
        for id_, key_id in zip(ids, key_ids, strict=True)
    ]
    voids = [
        Void(id_, uuid7_unix_ms(id_), "CANCELLED", key_id)
        for id_, key_id in zip(voided, key_ids, strict=True)
    ]
    for operations in (reserves, extends, settles, voids):
        outcomes = await apply_on(connection, [Timed(operation) for operation in operations])
        assert not [o for o in outcomes if isinstance(o, Exception)]


def _more(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return sorted(table for table, scans in after.items() if scans > before.get(table, 0))


async def _scans(connection: asyncpg.Connection) -> dict[str, int]:
    return await _counters(connection, "SELECT relname, seq_scan FROM pg_stat_user_tables")


async def _rows_read(connection: asyncpg.Connection) -> dict[str, int]:
    return await _counters(
        connection, "SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes"
    )


async def _counters(connection: asyncpg.Connection, query: str) -> dict[str, int]:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    return dict(await connection.fetch(query))


def _sequential(plan: dict[str, Any]) -> set[str]:
    found = {plan["Relation Name"]} if plan["Node Type"] == "Seq Scan" else set()
    for inner in plan.get("Plans", ()):
        found |= _sequential(inner)
    return found
