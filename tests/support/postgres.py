"""A real private PostgreSQL for a test session, and a fresh database for each test.

Use in a conftest.py or a test module:  `from support.postgres import postgres_server, database_dsn`
(both names: the second fixture asks for the first).
"""

import asyncio
import os
import secrets
import select
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import psutil
import pytest

from penstock.core import postgres
from penstock.core.postgres_server import HOST, PrivateServer, remove
from support.tcp import free_port

__all__ = ["crash", "database_dsn", "fresh_database", "postgres_server", "server_in"]


@contextmanager
def server_in(folder: Path, **settings: str) -> Iterator[PrivateServer]:
    """On a free port; nothing of it is left at the end."""
    server = PrivateServer(folder, free_port(), settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        remove(folder)


def crash(server: PrivateServer) -> None:
    """SIGKILL to the postmaster and its children; returns at their end."""
    assert server.pid is not None
    # One that stands still forks no child which nobody would know of, and misses none.
    os.kill(server.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    children = psutil.Process(server.pid).children(recursive=True)
    for pid in [*(child.pid for child in children), server.pid]:
        _kill(pid)


def _kill(pid: int) -> None:
    """Returns at its end: it holds no memory then, though nobody may have reaped it."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            end = select.poll()
            end.register(process, select.POLLIN)
            end.poll()
        finally:
            os.close(process)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """One server a session, on a free port in a temporary folder."""
    with server_in(Path(tmp_path_factory.mktemp("postgres"))) as server:
        yield server


async def fresh_database(server: PrivateServer, *, extensions: tuple[str, ...] = ()) -> str:
    """A new empty database with a role of its own; its DSN."""
    name = f"test_{secrets.token_hex(6)}"
    password = secrets.token_hex(16)
    await postgres.ensure_database(
        server.dsn(), database=name, role=name, password=password, extensions=extensions
    )
    return f"postgresql://{name}:{password}@{HOST}:{server.port}/{name}"


@pytest.fixture
async def database_dsn(postgres_server: PrivateServer) -> AsyncIterator[str]:
    """DSN of a database that lives as long as the test (with pgvector installed)."""
    dsn = await fresh_database(postgres_server, extensions=("vector",))
    yield dsn
    name = dsn.rsplit("/", 1)[1]
    async with asyncio.timeout(20):
        connection = await asyncpg.connect(postgres_server.dsn())
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await connection.execute(f"DROP ROLE IF EXISTS {name}")
        finally:
            await connection.close()
