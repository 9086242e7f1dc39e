"""PostgreSQL for the services that keep something: pools, databases and roles, migrations."""

import hashlib
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import asyncpg

Connection: TypeAlias = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy

CONNECT_TIMEOUT_SECONDS = 5.0
# Two services that migrate at once wait for each other under this advisory lock.
_MIGRATION_LOCK = 0x70656E73746F636B
_MIGRATION_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class MigrationError(Exception):
    """The schema and the program do not fit, or a migration that ran has been changed since."""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def create_pool(
    dsn: str,
    *,
    application_name: str,
    connections_max: int = 10,
    lock_timeout_ms: int = 1_000,
    statement_timeout_ms: int = 10_000,
    synchronous_commit: bool = True,
) -> asyncpg.Pool:
    """A pool that opens no connection yet: PostgreSQL may be down now and come later."""
    return await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=connections_max,
        timeout=CONNECT_TIMEOUT_SECONDS,
        # A new connection asks for types and plans everything anew.
        max_queries=sys.maxsize,
        reset=_as_it_is,
        # The server gives up first; this bounds a server that does not answer at all.
        command_timeout=statement_timeout_ms / 1000 + 5,
        server_settings={
            "application_name": application_name,
            "lock_timeout": str(lock_timeout_ms),
            "statement_timeout": str(statement_timeout_ms),
            # A transaction whose process vanished between two statements must not keep its locks.
            "idle_in_transaction_session_timeout": str(statement_timeout_ms),
            "synchronous_commit": "on" if synchronous_commit else "off",
            "timezone": "UTC",
            # Tiny queries on the hot path: compiling them costs more than running them.
            "jit": "off",
        },
    )


async def _as_it_is(connection: asyncpg.Connection) -> None:
    """Nobody leaves anything in a session: settings are LOCAL, or the session is ended (see below).
    To reset it after each use would be a round trip for nothing. An open transaction is rolled back
    even so.
    """


async def end_session(connection: Connection) -> None:
    """Closes a pool's connection, and with it the locks and settings of its session."""
    with suppress(Exception):  # it is closed all the same
        await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)


def is_outage(error: BaseException) -> bool:
    """Whether the error says that PostgreSQL is away, rather than that a statement was wrong."""
    return isinstance(
        error,
        OSError
        | TimeoutError
        | asyncpg.PostgresConnectionError
        | asyncpg.InterfaceError
        # What asyncpg says of a connection whose server vanished in mid-protocol.
        | asyncpg.InternalClientError
        | asyncpg.CannotConnectNowError
        | asyncpg.OperatorInterventionError
        | asyncpg.TooManyConnectionsError
        | asyncpg.InsufficientResourcesError
        | asyncpg.PostgresSystemError
        | asyncpg.ReadOnlySQLTransactionError,
    ) and not isinstance(error, asyncpg.QueryCanceledError)


async def ensure_database(
    superuser_dsn: str, *, database: str, role: str, password: str, extensions: Sequence[str] = ()
) -> None:
    """Makes the role and the database that it owns, if they are missing, and sets the password.

    Nobody else may connect to the database. Extensions need the superuser, so they are made here.
    """
    for name in (database, role):
        assert _IDENTIFIER.fullmatch(name), name
    connection = await asyncpg.connect(superuser_dsn, timeout=CONNECT_TIMEOUT_SECONDS)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} LOGIN")
        quoted = await connection.fetchval("SELECT quote_literal($1)", password)
        await connection.execute("SET log_statement = 'none'")
        await connection.execute(f"ALTER ROLE {role} PASSWORD {quoted}")
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
            await connection.execute(f"CREATE DATABASE {database} OWNER {role}")
            await connection.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    finally:
        await connection.close()
    if not extensions:
        return
    connection = await asyncpg.connect(
        superuser_dsn, database=database, timeout=CONNECT_TIMEOUT_SECONDS
    )
    try:
        for extension in extensions:
            assert _IDENTIFIER.fullmatch(extension), extension
            await connection.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
    finally:
        await connection.close()


def read_migrations(folder: Path) -> list[Migration]:
    """The numbered `NNNN_name.sql` files of a folder, without a gap, from 1."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _MIGRATION_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name} is not named NNNN_name.sql")
        found.append(Migration(int(match[1]), path.stem, path.read_text()))
    versions = [migration.version for migration in found]
    if versions != list(range(1, len(found) + 1)):
        raise MigrationError(f"migrations are not numbered 1, 2, 3, … without a gap: {versions}")
    return found


async def migrate(
    dsn: str, migrations: Sequence[Migration], *, newer_ok: bool = False
) -> list[str]:
    """Brings the schema forward, each migration in a transaction of its own; names those that ran.

    Safe to call from several processes at once. Never goes back: with `newer_ok`, a database that
    is newer than this program is left as it is (a deployment that was rolled back works on it).

    Raises:
        MigrationError: the database is newer than this program, or a migration that ran differs.
    """
    connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_SECONDS)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _MIGRATION_LOCK)
        await connection.execute(
            """
            CREATE TABLE IF NOT EXISTS schema_migrations (
                version integer PRIMARY KEY,
                name text NOT NULL,
                digest text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )"""
        )
        rows = await connection.fetch("SELECT version, name, digest FROM schema_migrations")
        applied = {row["version"]: row for row in rows}
        _check_history(applied, migrations, newer_ok=newer_ok)
        ran = []
        for migration in migrations:
            if migration.version in applied:
                continue
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(
                    "INSERT INTO schema_migrations (version, name, digest) VALUES ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.digest,
                )
            ran.append(migration.name)
        return ran
    finally:
        await connection.close()


async def schema_version(connection: Connection) -> int:
    """The newest migration that ran; 0 before the first."""
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return 0
    version = await connection.fetchval("SELECT max(version) FROM schema_migrations")
    return int(version or 0)


def _check_history(
    applied: dict[int, asyncpg.Record], migrations: Sequence[Migration], *, newer_ok: bool
) -> None:
    known = {migration.version: migration for migration in migrations}
    for version, row in sorted(applied.items()):
        if version not in known:
            if newer_ok:
                return
            raise MigrationError(
                f"the database is at {row['name']}, newer than this program "
                f"({len(migrations)} migrations): upgrade the program"
            )
        if row["digest"] != known[version].digest:
            raise MigrationError(
                f"migration {row['name']} was changed after it ran: add a new one instead"
            )
