"""Deletes what is of no use any more, a little at a time.

Nothing is forgotten wrongly: an id that is older than the horizon is refused as too old, whether it
is known or not, and what holds or is suspected stays.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from penstock.core import postgres
from penstock.quota.audit.report import Progress, quiet
from penstock.quota.audit.sealing import maintenance
from penstock.quota.ledger import ID_HORIZON_MS

MARGIN = timedelta(days=1)
"""Beyond the horizon: a process of another version may have a longer one."""
CHUNK = 5_000
"""Rows in one transaction: some tens of milliseconds, and its locks are on rows nobody asks for."""

# What is resolved, by id; $1: the last id looked at, $2: ids below are too old to be asked for.
_CANDIDATES = """
    SELECT (array_agg(id ORDER BY id DESC))[1] AS last, count(*) AS seen,
        array_agg(id) FILTER (WHERE state <> 'held' AND NOT (state = 'expired' AND pool = 'paid')
            AND NOT EXISTS (SELECT FROM entries e WHERE e.reservation_id = r.id)) AS ids
    FROM (
        SELECT id, state, pool FROM reservations
        WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3
    ) AS r
"""
_DELETE_RESERVATIONS = """
    DELETE FROM reservations WHERE id IN (
        SELECT id FROM reservations
        WHERE id = ANY ($1) AND state <> 'held' AND NOT (state = 'expired' AND pool = 'paid')
        FOR UPDATE SKIP LOCKED
    )
"""
# Windows that ended before any reservation that is left was made; what is unresolved may be older.
# A day more, since another time zone may have been set meanwhile.
_DELETE_WINDOWS = """
    DELETE FROM buckets WHERE id IN (
        SELECT b.id FROM buckets b JOIN budgets x ON x.id = b.budget_id
        WHERE b.unit <> 'nano_usd' AND x.kind <> 'total' AND b.held = 0 AND b.suspense = 0
            AND b.window_key < $1::timestamptz AT TIME ZONE 'UTC'
            AND window_end(x.kind, x.time_zone, b.window_key) + interval '1 day' <= $1
            AND b.id <> ALL ($2)
        LIMIT $3 FOR UPDATE OF b SKIP LOCKED
    )
"""


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were deleted: resolved reservations, closed windows of rate limits, and rows of
    checkpoints that a newer one stands for.
    """

    reservations: int = 0
    windows: int = 0
    checkpoint_rows: int = 0


async def prune(dsn: str, progress: Progress = quiet) -> Pruned:
    """Deletes what is older than the horizon of ids and a margin. May be run at any time."""
    async with maintenance(dsn) as connection:
        now: datetime = await connection.fetchval("SELECT ledger_now()")
        cutoff = now - timedelta(milliseconds=ID_HORIZON_MS) - MARGIN
        return Pruned(
            reservations=await _prune_reservations(connection, cutoff, progress),
            windows=await _prune_windows(connection, cutoff, progress),
            checkpoint_rows=await _prune_checkpoints(connection, progress),
        )


async def _prune_reservations(
    connection: postgres.Connection, cutoff: datetime, progress: Progress
) -> int:
    low, high = UUID(int=0), first_id(cutoff)
    total = await connection.fetchval("SELECT count(*) FROM reservations WHERE id < $1", high)
    seen = deleted = 0
    while True:
        found = await connection.fetchrow(_CANDIDATES, low, high, CHUNK)
        assert found is not None
        if not found["seen"]:
            return deleted
        if found["ids"]:
            deleted += _rows(await connection.execute(_DELETE_RESERVATIONS, found["ids"]))
        low, seen = found["last"], seen + found["seen"]
        progress("reservations", min(seen, total), max(total, 1))


async def _prune_windows(
    connection: postgres.Connection, cutoff: datetime, progress: Progress
) -> int:
    # In one snapshot: what is resolved between two looks would be in neither.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(
            "SELECT min(created_at) FILTER (WHERE NOT pinned) AS oldest FROM ("
            " SELECT created_at, state = 'held' OR (state = 'expired' AND pool = 'paid') AS pinned"
            " FROM reservations WHERE cardinality(bucket_ids) > 0) AS r"
        )
        assert row is not None
        cutoff = min(cutoff, row["oldest"] or cutoff)
        pinned = await connection.fetchval(
            "SELECT coalesce(array_agg(DISTINCT b), '{}') FROM ("
            " SELECT bucket_ids FROM reservations WHERE state = 'held' UNION ALL"
            " SELECT bucket_ids FROM reservations WHERE state = 'expired' AND pool = 'paid'"
            ") AS r, unnest(r.bucket_ids) AS b"
        )
    deleted = 0
    while count := _rows(await connection.execute(_DELETE_WINDOWS, cutoff, pinned, CHUNK)):
        deleted += count
        progress("windows", deleted, deleted)
    return deleted


async def _prune_checkpoints(connection: asyncpg.Connection, progress: Progress) -> int:
    """Those before the newest detached epoch: a full audit begins with that one's."""
    deleted = 0
    for table, key in (
        ("checkpoint_buckets", "bucket_id"),
        ("checkpoint_reservations", "reservation_id"),
    ):
        query = (
            f"DELETE FROM {table} WHERE (epoch, {key}) IN (SELECT epoch, {key} FROM {table}"  # noqa: S608 - both named here
            " WHERE epoch < (SELECT max(id) FROM epochs WHERE detached_at IS NOT NULL) LIMIT $1)"
        )
        while count := _rows(await connection.execute(query, CHUNK)):
            deleted += count
            progress("checkpoints", deleted, deleted)
    return deleted


def first_id(at: datetime) -> UUID:
    """Below every UUIDv7 of this moment or later."""
    return UUID(int=int(at.timestamp() * 1000) << 80)


def _rows(status: str) -> int:
    """Of a command's tag, `DELETE 12`."""
    return int(status.rsplit(" ", 1)[1])
