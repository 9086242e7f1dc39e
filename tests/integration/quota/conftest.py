import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from penstock.core.postgres_server import PrivateServer
from support.admin import admin
from support.ledger import ledger, ledger_dsn, migrated_database
from support.postgres import database_dsn, postgres_server
from support.quota_process import QuotaProcess, quota_process
from support.small_ledger import SmallLedger, small_ledger

__all__ = ["admin", "database_dsn", "ledger", "ledger_dsn", "postgres_server"]


@pytest.fixture(scope="module")
def module_dsn(postgres_server: PrivateServer) -> str:
    return asyncio.run(migrated_database(postgres_server))


@pytest.fixture
async def small(postgres_server: PrivateServer) -> AsyncIterator[SmallLedger]:
    small = await small_ledger(postgres_server)
    yield small
    await small.ledger.database.close()


@pytest.fixture
async def connection(small: SmallLedger) -> AsyncIterator[asyncpg.Connection]:
    """Its own, to the small ledger: for what an operator or a vandal does by hand."""
    connection = await asyncpg.connect(small.ledger.dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def quota(module_dsn: str, tmp_path: Path) -> AsyncIterator[QuotaProcess]:
    async with quota_process(module_dsn, tmp_path) as running:
        yield running
