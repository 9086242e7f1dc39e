"""Private PostgreSQL servers of the proofs, and databases on a clock that a proof moves."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg

from penstock.core import postgres
from penstock.core.ports import free_port
from penstock.core.postgres_server import PrivateServer, remove
from penstock.quota.store.database import MIGRATIONS
from support.postgres import fresh_database

CLOCK = """
    CREATE TABLE test_clock (at timestamptz);
    INSERT INTO test_clock VALUES (clock_timestamp());
    CREATE OR REPLACE FUNCTION ledger_now() RETURNS timestamptz
    LANGUAGE sql VOLATILE AS 'SELECT at FROM test_clock';
"""


@contextlib.contextmanager
def private_server(*, durable: bool = False) -> Iterator[PrivateServer]:
    """`durable`: with fsync, for proofs that kill it; the others ask for decisions alone."""
    settings = {} if durable else {"fsync": "off", "synchronous_commit": "off"}
    folder = Path(tempfile.mkdtemp(prefix="penstock-proof-"))
    server = PrivateServer(folder, free_port(), settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        remove(folder)


async def clocked_database(
    server: PrivateServer, migrations: Sequence[postgres.Migration] = MIGRATIONS
) -> str:
    """DSN of a new ledger on a clock that stands still."""
    dsn = await fresh_database(server)
    await postgres.migrate(dsn, migrations)
    connection = await asyncpg.connect(dsn)
    await connection.execute(CLOCK)
    await connection.close()
    return dsn
