import asyncio

import asyncpg
import pytest

from penstock.core.postgres_server import PrivateServer
from support.ledger import START, ledger, migrated_database
from support.postgres import database_dsn, postgres_server

__all__ = ["database_dsn", "ledger", "postgres_server"]


@pytest.fixture
def ledger_dsn(postgres_server: PrivateServer) -> str:
    """A database for each test: a reconciliation sees all attempts of its days."""

    async def make() -> str:
        dsn = await migrated_database(postgres_server)
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE test_clock (at timestamptz NOT NULL)")
        await connection.execute("INSERT INTO test_clock VALUES ($1)", START)
        await connection.execute(
            "CREATE OR REPLACE FUNCTION ledger_now() RETURNS timestamptz"
            " LANGUAGE sql VOLATILE AS 'SELECT at FROM test_clock'"
        )
        await connection.close()
        return dsn

    return asyncio.run(make())
