import asyncio

import pytest

from penstock.core.postgres_server import PrivateServer
from support.ledger import clocked_database, ledger
from support.postgres import database_dsn, postgres_server

__all__ = ["database_dsn", "ledger", "postgres_server"]


@pytest.fixture
def ledger_dsn(postgres_server: PrivateServer) -> str:
    """A database for each test: a reconciliation sees all attempts of its days."""
    return asyncio.run(clocked_database(postgres_server))
