import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from penstock.core.postgres_server import PrivateServer
from support.postgres import fresh_database, postgres_server

__all__ = ["postgres_server"]


@pytest.fixture(scope="session")
def cache_database(postgres_server: PrivateServer) -> str:
    """One database for the whole session: making one costs more than most of these tests."""
    return asyncio.run(fresh_database(postgres_server))


@pytest.fixture
async def database_dsn(cache_database: str) -> AsyncIterator[str]:
    """It is left empty."""
    yield cache_database
    connection = await asyncpg.connect(cache_database)
    try:
        await connection.execute("DELETE FROM entries; DELETE FROM flights; DELETE FROM handoffs")
    finally:
        await connection.close()
