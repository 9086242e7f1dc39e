"""Deletes what is of no use any more, a little at a time.

Nothing is forgotten wrongly: an id that is older than the horizon is refused as too old, whether it
is known or not, and what holds or is suspected stays.
"""
# ruff: noqa: S608 - composed of what is written in this file.

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from penstock.core import postgres
from penstock.quota.audit.report import Progress, quiet
from penstock.quota.audit.sealing import maintenance, rows_of
from penstock.quota.ledger import ID_HORIZON_MS

MARGIN = timedelta(days=1)
"""Beyond the horizon: a process of another version may have a longer one."""
CHUNK = 5_000
"""Rows in one transaction: some tens of milliseconds, and its locks are on rows nobody asks for."""

_RESOLVED = "state <> 'held' AND NOT (state = 'expired' AND pool = 'paid')"
# By id; $1: the last id looked at, $2: ids below are too old to be asked for.
_CANDIDATES = f"""
    SELECT (array_agg(id ORDER BY id DESC))[1] AS last, count(*) AS seen,
        array_agg(id) FILTER (WHERE {_RESOLVED}
            AND NOT EXISTS (SELECT FROM entries e WHERE e.reservation_id = r.id)) AS ids
    FROM (
        SELECT id, state, pool FROM reservations
        WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3
    ) AS r
"""
# What they count in windows of rate limits that are still there is kept: an audit adds it. So is
# when the last of a provider's counted: such a day would be reconciled with what is missing.
_DELETE_RESERVATIONS = f"""
    WITH gone AS (
        DELETE FROM reservations WHERE id IN (
            SELECT id FROM reservations WHERE id = ANY ($1) AND {_RESOLVED}
            FOR UPDATE SKIP LOCKED
        )
        RETURNING state, pool, provider, greatest(created_at, resolved_at) AS counted_at,
            bucket_ids, coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0) AS tokens
    ),
    days AS (
        INSERT INTO pruned_attempts AS d (provider, until)
        SELECT provider, max(counted_at) FROM gone WHERE pool = 'paid' AND state = 'settled'
        GROUP BY provider
        ON CONFLICT (provider) DO UPDATE SET until = greatest(d.until, excluded.until)
    ),
    kept AS (
        INSERT INTO pruned_uses AS p (bucket_id, requests, tokens)
        SELECT b.id, count(*), sum(g.tokens)
        FROM gone g, unnest(g.bucket_ids) AS u (id)
        JOIN buckets b ON b.id = u.id AND b.unit IN ('requests', 'tokens')
        WHERE g.state = 'settled'
        GROUP BY b.id
        ON CONFLICT (bucket_id) DO UPDATE SET
            requests = p.requests + excluded.requests, tokens = p.tokens + excluded.tokens
    )
    SELECT count(*) FROM gone
"""
# Windows that ended before any reservation that is left was made; what is unresolved may be older.
# A day more, since another time zone may have been set meanwhile.
_WINDOWS = """
    SELECT b.id FROM buckets b JOIN budgets x ON x.id = b.budget_id
    WHERE b.unit <> 'nano_usd' AND x.kind <> 'total' AND b.held = 0 AND b.suspense = 0
        AND b.window_key < $1::timestamptz AT TIME ZONE 'UTC'
        AND window_end(x.kind, x.time_zone, b.window_key) + interval '1 day' <= $1
        AND b.id <> ALL ($2)
"""
_DELETE_WINDOWS = f"""
    WITH gone AS (
        DELETE FROM buckets WHERE id IN ({_WINDOWS} LIMIT $3 FOR UPDATE OF b SKIP LOCKED)
        RETURNING id
    ),
    uses AS (DELETE FROM pruned_uses p USING gone WHERE p.bucket_id = gone.id)
    SELECT count(*) FROM gone
"""
# $1: ids below go, if they may: a dry run's next step sees the ledger without them.
_BOUND = f"""
    SELECT min(created_at) FROM reservations r
    WHERE cardinality(bucket_ids) > 0 AND {_RESOLVED}
        AND (id >= $1 OR EXISTS (SELECT FROM entries e WHERE e.reservation_id = r.id))
"""
_PINNED = """
    SELECT coalesce(array_agg(DISTINCT b), '{}') FROM (
        SELECT bucket_ids FROM reservations WHERE state = 'held' UNION ALL
        SELECT bucket_ids FROM reservations WHERE state = 'expired' AND pool = 'paid'
    ) AS r, unnest(r.bucket_ids) AS b
"""
# Those before the newest detached epoch: a full audit begins with that one's. Digests stay.
_CHECKPOINTS = {
    "checkpoint_buckets": "bucket_id",
    "checkpoint_reservations": "reservation_id",
    "checkpoint_settings": "subject, subject_id",
}
_OLD = "epoch < (SELECT max(id) FROM epochs WHERE detached_at IS NOT NULL)"


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows were deleted: resolved reservations, closed windows of rate limits, and rows of
    checkpoints that a newer one stands for.
    """

    reservations: int = 0
    windows: int = 0
    checkpoint_rows: int = 0


async def prune(dsn: str, progress: Progress = quiet, *, dry_run: bool = False) -> Pruned:
    """Deletes what is older than the horizon of ids and a margin. May be run at any time.

    A dry run counts what would go at this moment, and deletes nothing.
    """
    async with maintenance(dsn) as connection:
        now: datetime = await connection.fetchval("SELECT ledger_now()")
        cutoff = now - timedelta(milliseconds=ID_HORIZON_MS) - MARGIN
        return Pruned(
            reservations=await _reservations(connection, cutoff, progress, dry_run=dry_run),
            windows=await _windows(connection, cutoff, progress, dry_run=dry_run),
            checkpoint_rows=await _checkpoints(connection, progress, dry_run=dry_run),
        )


async def _reservations(
    connection: postgres.Connection, cutoff: datetime, progress: Progress, *, dry_run: bool
) -> int:
    low, high = UUID(int=0), first_id(cutoff)
    total = await connection.fetchval("SELECT count(*) FROM reservations WHERE id < $1", high)
    seen = gone = 0
    while True:
        found = await connection.fetchrow(_CANDIDATES, low, high, CHUNK)
        assert found is not None
        if not found["seen"]:
            return gone
        if dry_run:
            gone += len(found["ids"] or ())
        elif found["ids"]:
            gone += await connection.fetchval(_DELETE_RESERVATIONS, found["ids"])
        low, seen = found["last"], seen + found["seen"]
        progress("reservations", min(seen, total), max(total, 1))


async def _windows(
    connection: postgres.Connection, cutoff: datetime, progress: Progress, *, dry_run: bool
) -> int:
    # In one snapshot: what is resolved between two looks would be in neither.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # Of a reservation that could not be deleted just now, its windows stay, too.
        oldest = await connection.fetchval(_BOUND, first_id(cutoff) if dry_run else UUID(int=0))
        cutoff = min(cutoff, oldest or cutoff)
        pinned = await connection.fetchval(_PINNED)
        if dry_run:
            query = f"SELECT count(*) FROM ({_WINDOWS}) AS w"
            return int(await connection.fetchval(query, cutoff, pinned))
    deleted = 0
    while count := await connection.fetchval(_DELETE_WINDOWS, cutoff, pinned, CHUNK):
        deleted += count
        progress("windows", deleted, deleted)
    return deleted


async def _checkpoints(
    connection: postgres.Connection, progress: Progress, *, dry_run: bool
) -> int:
    gone = 0
    for table, key in _CHECKPOINTS.items():
        if dry_run:
            gone += await connection.fetchval(f"SELECT count(*) FROM {table} WHERE {_OLD}")
            continue
        query = (
            f"DELETE FROM {table} WHERE (epoch, {key}) IN"
            f" (SELECT epoch, {key} FROM {table} WHERE {_OLD} LIMIT $1)"
        )
        while count := rows_of(await connection.execute(query, CHUNK)):
            gone += count
            progress("checkpoints", gone, gone)
    return gone


def first_id(at: datetime) -> UUID:
    """Below every UUIDv7 of this moment or later."""
    return UUID(int=int(at.timestamp() * 1000) << 80)
