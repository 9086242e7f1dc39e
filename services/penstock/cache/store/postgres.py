"""The store in PostgreSQL: a call is one statement, over arrays."""

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import asyncpg

from penstock.cache.store.base import Ask, Flight, Found, Keep, Key, Swept, Verdict
from penstock.core.errors import Unavailable
from penstock.core.postgres import Connection, end_session, is_outage

MIGRATIONS = Path(__file__).parent / "migrations"

CHANNEL = "penstock_cache_flights"
"""NOTIFY with a flight's token: it ended."""

HANDOFF_SECONDS = 30.0
"""How long an answer lies ready for those who waited; they fetch it as soon as they are told."""

SWEEP_ROWS_MAX = 5_000
"""Rows that one sweep statement removes: its locks and its WAL stay small."""

EVICT_TO_PERCENT = 90
"""Of the limit: an eviction makes room for a while, not for one entry."""

_SWEEP_LOCK = 0x70656E63
"""One process sweeps at a time; the others have nothing to add."""

_BUSY = (
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
)

T = TypeVar("T")


async def _told(call: Awaitable[T]) -> T:
    try:
        return await call
    except Exception as error:
        if is_outage(error) or isinstance(error, _BUSY):
            raise Unavailable(
                f"the cache's PostgreSQL does not answer ({type(error).__name__}); try again",
                reason="STORE_UNAVAILABLE",
            ) from error
        raise


class PostgresStore:
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def look_up(self, asks: Sequence[Ask]) -> list[Found]:
        # Sorted by key, so that two processes take the rows of flights in the same order.
        order = sorted(range(len(asks)), key=lambda i: asks[i].key)
        sorted_asks = [asks[i] for i in order]
        rows = await _told(
            self._pool.fetch(
                "SELECT * FROM look_up($1, $2, $3, $4, $5, $6, $7)",
                [a.key.org_id for a in sorted_asks],
                [a.key.fingerprint for a in sorted_asks],
                [a.max_age_seconds for a in sorted_asks],
                [a.joins for a in sorted_asks],
                [a.token for a in sorted_asks],
                [a.awaited for a in sorted_asks],
                [a.lease_ms for a in sorted_asks],
            )
        )
        assert len(rows) == len(asks)
        found: list[Found | None] = [None] * len(asks)
        for i, row in zip(order, rows, strict=True):
            found[i] = Found(Verdict(row[0]), row[1], row[2], row[3])
        return [f for f in found if f is not None]

    async def store(self, keeps: Sequence[Keep]) -> None:
        ordered = sorted(keeps, key=lambda k: k.key)
        await _told(
            self._pool.execute(
                "SELECT store_answers($1, $2, $3, $4, $5, $6, $7, $8)",
                CHANNEL,
                [k.key.org_id for k in ordered],
                [k.key.fingerprint for k in ordered],
                [k.answer for k in ordered],
                [k.keeps for k in ordered],
                [k.ttl_seconds for k in ordered],
                [k.token for k in ordered],
                HANDOFF_SECONDS,
            )
        )

    async def abandon(self, flights: Sequence[Flight]) -> None:
        await _told(
            self._pool.execute(
                """
                WITH locked AS (
                    SELECT f.ctid FROM flights f
                    JOIN unnest($2::text[], $3::bytea[], $4::uuid[])
                        AS g (org_id, fingerprint, token) USING (org_id, fingerprint, token)
                    ORDER BY f.org_id COLLATE "C", f.fingerprint FOR UPDATE OF f
                ), ended AS (
                    DELETE FROM flights WHERE ctid IN (SELECT ctid FROM locked)
                    RETURNING token, shared
                )
                SELECT pg_notify($1, token::text) FROM ended WHERE shared
                """,
                CHANNEL,
                *_columns(flights),
            )
        )

    async def renew(self, flights: Sequence[Flight], lease_ms: int) -> None:
        await _told(
            self._pool.execute(
                """
                WITH locked AS (
                    SELECT f.ctid FROM flights f
                    JOIN unnest($1::text[], $2::bytea[], $3::uuid[])
                        AS g (org_id, fingerprint, token) USING (org_id, fingerprint, token)
                    ORDER BY f.org_id COLLATE "C", f.fingerprint FOR UPDATE OF f
                )
                UPDATE flights
                SET lease_expires_at = clock_timestamp() + make_interval(secs => $4 / 1000.0)
                WHERE ctid IN (SELECT ctid FROM locked)
                """,
                *_columns(flights),
                float(lease_ms),
            )
        )

    async def ended(self, flights: Sequence[Flight]) -> set[UUID]:
        rows = await _told(
            self._pool.fetch(
                """
                SELECT g.token FROM unnest($1::text[], $2::bytea[], $3::uuid[])
                    AS g (org_id, fingerprint, token)
                LEFT JOIN flights f USING (org_id, fingerprint, token)
                WHERE f.lease_expires_at IS NULL OR f.lease_expires_at <= clock_timestamp()
                """,
                *_columns(flights),
            )
        )
        return {UUID(int=row[0].int) for row in rows}

    async def touch(self, keys: Sequence[Key]) -> None:
        await _told(
            self._pool.execute(
                """
                WITH locked AS (
                    SELECT e.ctid FROM entries e
                    JOIN unnest($1::text[], $2::bytea[]) AS g (org_id, fingerprint)
                        USING (org_id, fingerprint)
                    ORDER BY e.org_id COLLATE "C", e.fingerprint FOR UPDATE OF e
                )
                UPDATE entries SET used_at = clock_timestamp()
                WHERE ctid IN (SELECT ctid FROM locked)
                """,
                [k.org_id for k in keys],
                [k.fingerprint for k in keys],
            )
        )

    async def sweep(self, bytes_max: int) -> Swept:
        return await _told(self._sweep(bytes_max))

    async def _sweep(self, bytes_max: int) -> Swept:
        async with self._pool.acquire() as connection:
            is_locked = None  # not known: a call that breaks off may have taken it
            try:
                is_locked = await connection.fetchval(
                    "SELECT pg_try_advisory_lock($1)", _SWEEP_LOCK
                )
                if not is_locked:
                    return Swept(0, 0, 0)
                expired = await _remove_expired(connection)
                evicted = await _evict(connection, bytes_max)
                size_bytes = await _size_bytes(connection)
            finally:
                if is_locked is not False:
                    await end_session(connection)  # the lock ends with it
        return Swept(expired, evicted, size_bytes)


def _columns(flights: Sequence[Flight]) -> tuple[list[str], list[bytes], list[UUID]]:
    return (
        [f.key.org_id for f in flights],
        [f.key.fingerprint for f in flights],
        [f.token for f in flights],
    )


async def _remove_expired(connection: Connection) -> int:
    """Entries are not found once they expired; this only gives their room back."""
    removed = 0
    for table, column in (
        ("entries", "expires_at"),
        ("handoffs", "expires_at"),
        ("flights", "lease_expires_at"),
    ):
        while True:
            # SKIP LOCKED: a row that somebody renews or replaces now is no longer expired.
            status = await connection.execute(
                f"""
                DELETE FROM {table} WHERE ctid = ANY(ARRAY(
                    SELECT ctid FROM {table} WHERE {column} <= clock_timestamp()
                    LIMIT $1 FOR UPDATE SKIP LOCKED))
                """,  # noqa: S608  the names are those above
                SWEEP_ROWS_MAX,
            )
            count = int(status.rsplit(" ", 1)[1])
            removed += count if table == "entries" else 0
            if count < SWEEP_ROWS_MAX:
                break
    return removed


async def _evict(connection: Connection, bytes_max: int) -> int:
    excess_bytes = await _size_bytes(connection) - bytes_max
    if excess_bytes <= 0:
        return 0
    excess_bytes += bytes_max * (100 - EVICT_TO_PERCENT) // 100
    evicted = 0
    while excess_bytes > 0:
        row = await connection.fetchrow(
            """
            WITH oldest AS (
                SELECT ctid, used_at, size_bytes FROM entries
                ORDER BY used_at LIMIT $2 FOR UPDATE SKIP LOCKED
            ), ranked AS (
                SELECT ctid, sum(size_bytes) OVER (ORDER BY used_at, ctid) - size_bytes AS before
                FROM oldest
            ), removed AS (
                DELETE FROM entries
                WHERE ctid = ANY(ARRAY(SELECT ctid FROM ranked WHERE before < $1))
                RETURNING size_bytes
            )
            SELECT count(*), coalesce(sum(size_bytes), 0)::bigint FROM removed
            """,
            excess_bytes,
            SWEEP_ROWS_MAX,
        )
        assert row is not None
        if row[0] == 0:
            break
        evicted += row[0]
        excess_bytes -= row[1]
    return evicted


async def _size_bytes(connection: Connection) -> int:
    size = await connection.fetchval("SELECT coalesce(sum(size_bytes), 0)::bigint FROM entries")
    return int(size)
