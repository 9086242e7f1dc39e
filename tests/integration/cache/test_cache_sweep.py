"""One process sweeps at a time, and whatever becomes of its sweep, the next one can."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from penstock.cache.store import postgres
from penstock.cache.store.base import Swept
from penstock.cache.store.postgres import MIGRATIONS, PostgresStore
from penstock.core.postgres import create_pool, migrate, read_migrations
from support.cancelled import cancelled_at_each_await
from support.wait import until

BYTES_MAX = 1024**2


@pytest.fixture
async def pool(database_dsn: str) -> AsyncIterator[asyncpg.Pool]:
    """Of one connection."""
    await migrate(database_dsn, read_migrations(MIGRATIONS))
    async with await create_pool(
        database_dsn, application_name="test", connections_max=1
    ) as opened:
        yield opened


@pytest.fixture
async def other(database_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


async def test_a_sweep_that_is_cancelled_at_any_moment_leaves_no_lock(
    pool: asyncpg.Pool, other: asyncpg.Connection
) -> None:
    store = PostgresStore(pool)

    async def is_free() -> bool:
        return not await other.fetch(
            "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE l.locktype = 'advisory' AND d.datname = current_database()"
        )

    # Each run begins on an open connection, so that all await the same and none is passed over.
    await pool.execute("SELECT 1")
    async for _ in cancelled_at_each_await(lambda: store.sweep(BYTES_MAX)):
        await until(is_free)
        await pool.execute("SELECT 1")
    await until(is_free)


async def test_where_another_sweeps_there_is_nothing_to_do_and_the_session_stays(
    pool: asyncpg.Pool, other: asyncpg.Connection
) -> None:
    await other.execute("SELECT pg_advisory_lock($1)", postgres._SWEEP_LOCK)
    session = await pool.fetchval("SELECT pg_backend_pid()")
    assert Swept(0, 0, 0) == await PostgresStore(pool).sweep(BYTES_MAX)
    assert session == await pool.fetchval("SELECT pg_backend_pid()")
