"""Connections of a process: kept while they are good, given up where their server has vanished."""

from contextlib import AsyncExitStack

import asyncpg
import pytest

from penstock.quota.store import database as database_module
from penstock.quota.store.database import CONNECTIONS_MAX
from support.ledger import Ledger

_PIDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'penstock-quota'"


async def pids(ledger: Ledger) -> set[int]:
    connection = await asyncpg.connect(ledger.dsn)
    try:
        query = f"{_PIDS} AND datname = current_database()"
        return {row["pid"] for row in await connection.fetch(query)}
    finally:
        await connection.close()


async def test_a_busy_pool_is_not_taken_for_a_vanished_server(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "CHECK_TIMEOUT_SECONDS", 0.1)
    async with AsyncExitStack() as stack:
        for _ in range(CONNECTIONS_MAX):
            await stack.enter_async_context(ledger.database.connection())
        busy = await pids(ledger)
        assert not await ledger.database.is_current()
    assert await ledger.database.is_current()
    assert (CONNECTIONS_MAX, busy) == (ledger.database.connections, await pids(ledger))


async def test_connections_to_a_server_that_does_not_answer_are_given_up(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.store.warm(3)
    silent = await pids(ledger)
    assert len(silent) >= 3
    connection = await asyncpg.connect(ledger.dsn)
    async with connection.transaction():
        # The question about the schema waits for this.
        await connection.execute("LOCK TABLE schema_migrations")
        with monkeypatch.context() as patch:
            patch.setattr(database_module, "CHECK_TIMEOUT_SECONDS", 0.1)
            assert not await ledger.database.is_current()
    await connection.close()
    assert await ledger.database.is_current()
    await ledger.store.warm(3)
    assert not silent & await pids(ledger)
