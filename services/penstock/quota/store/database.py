"""The ledger's PostgreSQL as the stores see it: one pool, outages told as such, its version."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from penstock.core import errors, postgres

MIGRATIONS = postgres.read_migrations(Path(__file__).parent / "migrations")

CONNECTIONS_MAX = 12
"""Of one process. The batcher has a few batches in flight; two are left for everything else."""
LOCK_TIMEOUT_MS = 2_000
"""What an administrator's slow transaction can stall one organisation's batch for."""
BUSY = "LEDGER_BUSY"
"""The reason of an error where somebody else keeps rows locked."""
STATEMENT_TIMEOUT_MS = 10_000
ACQUIRE_TIMEOUT_SECONDS = 5.0
CHECK_TIMEOUT_SECONDS = 3.0
"""A database that does not answer so small a question within this is not ready."""
BUSY_RETRY_SECONDS = 0.2
OUTAGE_RETRY_SECONDS = 1.0


class Database:
    """A pool that may be made before PostgreSQL is there; it reconnects by itself."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    async def open(cls, dsn: str) -> "Database":
        return cls(
            await postgres.create_pool(
                dsn,
                application_name="penstock-quota",
                connections_max=CONNECTIONS_MAX,
                lock_timeout_ms=LOCK_TIMEOUT_MS,
                statement_timeout_ms=STATEMENT_TIMEOUT_MS,
            )
        )

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[postgres.Connection]:
        """A connection for one piece of work.

        Raises:
            Unavailable: LEDGER_UNAVAILABLE where PostgreSQL is away (what was under way may or may
                not have been committed), LEDGER_BUSY where a lock could not be had in time.
        """
        try:
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection:
                yield connection
        except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError) as error:
            raise busy("the account") from error
        except asyncpg.UndefinedTableError as error:
            raise _unavailable("its schema is missing: run `penstock quota migrate`") from error
        except asyncpg.UndefinedFunctionError as error:
            raise _unavailable("its schema is old: run `penstock quota migrate`") from error
        except Exception as error:
            if postgres.is_outage(error):
                raise _unavailable("its database does not answer") from error
            raise

    async def is_current(self) -> bool:
        """Whether PostgreSQL answers, and its schema is at least this program's.

        Migrations only add to what the release before uses, so that while one is rolled out the old
        processes go on over the new schema (CONTRIBUTING.md).
        """
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS), self.connection() as connection:
                return await postgres.schema_version(connection) >= len(MIGRATIONS)
        except (errors.Unavailable, TimeoutError):
            # Of a server that vanished without a word each would be tried for seconds; where
            # all are at work, they are good.
            if self._pool.get_idle_size():
                await self._pool.expire_connections()
            return False

    @property
    def connections(self) -> int:
        """How many are open."""
        return int(self._pool.get_size())


def busy(what: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"{what} is being changed by somebody else; try again",
        reason=BUSY,
        retry_after_seconds=BUSY_RETRY_SECONDS,
    )


def _unavailable(why: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"the ledger is away ({why}); paid requests are refused until it is back",
        reason="LEDGER_UNAVAILABLE",
        retry_after_seconds=OUTAGE_RETRY_SECONDS,
    )
