"""PostgreSQL that answers, but far too slowly: told in bounded time, never half-done, recovers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from penstock.core.channel import connect
from penstock.core.deadline import Deadline
from penstock.core.errors import DeadlineExceeded
from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from penstock.quota.store.database import STATEMENT_TIMEOUT_MS
from penstock.quota.v1 import quota_pb2
from penstock.router.ledger import QuotaLedger
from support.ledger import migrated_database
from support.quota_process import (
    SERVICE,
    SERVICE_TOKEN,
    QuotaProcess,
    one_nano,
    quota_process,
    reason_of,
)
from support.wait import until

MARGIN_SECONDS = 4.0
"""For a machine with other work: what is measured is bounded by the time-outs, not by luck."""


@asynccontextmanager
async def slow_entries(dsn: str, seconds: int) -> AsyncIterator[asyncpg.Connection]:
    """Each entry takes so long to write, as on a disk that is about to fail."""
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        f"""
        CREATE FUNCTION slow_down() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END';
        CREATE TRIGGER slow_down BEFORE INSERT ON entries
            FOR EACH ROW EXECUTE FUNCTION slow_down();
        """
    )
    try:
        yield connection
    finally:
        # It waits for whatever still writes.
        await connection.execute(
            "DROP TRIGGER IF EXISTS slow_down ON entries; DROP FUNCTION IF EXISTS slow_down"
        )
        await connection.close()


async def sleeping(connection: asyncpg.Connection) -> bool:
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE wait_event = 'PgSleep' AND datname = current_database())"
    )
    return found


async def timed(work: asyncio.Task[str]) -> tuple[str, float]:
    began = time.monotonic()
    return await work, time.monotonic() - began


def reserve(
    quota: QuotaProcess, request: quota_pb2.ReserveRequest, timeout: float
) -> "asyncio.Task[str]":
    """Why it failed."""
    call = quota.quota.Reserve(request, metadata=SERVICE, timeout=timeout)
    return asyncio.create_task(reason_of(call))


async def test_a_database_that_hangs_in_a_write_is_told_in_time_and_nothing_is_held(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(postgres_server)
    async with quota_process(dsn, tmp_path) as quota:
        key_id = (await quota.new_key(1000)).key.id
        channel = connect(quota.address)
        router = QuotaLedger(channel, SERVICE_TOKEN)
        hung, impatient, routed = (one_nano(key_id) for _ in range(3))
        async with slow_entries(dsn, 3600) as administrator:
            hanging = asyncio.create_task(timed(reserve(quota, hung, 60)))
            await until(lambda: sleeping(administrator))

            # Behind it, each waits for as long as it said and no longer.
            told, seconds = await timed(reserve(quota, impatient, 1))
            assert told.startswith("DEADLINE_EXCEEDED")
            assert seconds < 1 + MARGIN_SECONDS
            with pytest.raises(DeadlineExceeded):
                await router.reserve(routed, Deadline.after(1))

            told, seconds = await hanging
            assert "UNAVAILABLE LEDGER_BUSY" == told
            assert seconds < STATEMENT_TIMEOUT_MS / 1000 + MARGIN_SECONDS
        assert (0, 0, 0) == await quota.balances(key_id)

        # The same ids, now that it is well: nothing of them was left behind.
        for request in (hung, impatient):
            await quota.quota.Reserve(request, metadata=SERVICE)
        # The router gave its own up, and sees to it that it is not held.
        await until(lambda: not router.resolving)
        assert "FAILED_PRECONDITION RESERVATION_VOIDED" == await reason_of(
            quota.quota.Reserve(routed, metadata=SERVICE)
        )
        assert (0, 2, 0) == await quota.balances(key_id)
        await router.drain(5)
        await channel.close()
    assert (await audit_dsn(dsn)).ok


async def test_what_commits_after_its_caller_has_gone_is_whole_and_found_by_a_repeat(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(postgres_server)
    async with quota_process(dsn, tmp_path) as quota:
        key_id = (await quota.new_key(1000)).key.id
        request = one_nano(key_id)
        async with slow_entries(dsn, 2):
            told, seconds = await timed(reserve(quota, request, 1))
            assert told.startswith("DEADLINE_EXCEEDED")
            assert seconds < 1 + MARGIN_SECONDS
        assert (0, 1, 0) == await quota.balances(key_id)

        answer = await quota.quota.Reserve(request, metadata=SERVICE)
        assert (request.reservation_id, 999) == (answer.reservation_id, answer.remaining_nano_usd)
        assert (0, 1, 0) == await quota.balances(key_id)
    assert (await audit_dsn(dsn)).ok
