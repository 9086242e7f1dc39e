from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.core.postgres_server import PrivateServer
from support.ledger import Ledger, ledger, ledger_dsn, migrated_database
from support.operating import Operator, operating, operator
from support.postgres import database_dsn, postgres_server

__all__ = ["database_dsn", "ledger", "ledger_dsn", "operator", "postgres_server"]


@pytest.fixture
async def own_operator(
    postgres_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    """Over a new ledger on the real clock that nobody else uses."""
    ledger = await Ledger.open(await migrated_database(postgres_server))
    async with operating(ledger, tmp_path, monkeypatch) as running:
        yield running
    await ledger.database.close()
