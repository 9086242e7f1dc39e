"""The transaction of a change that an operator makes: audited by an entry, or taken back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg
import msgspec

from penstock.core import errors, postgres
from penstock.quota.account import AccountKind, format_id
from penstock.quota.store.database import Database, busy

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Change:
    """Who makes a change, and why. `dry_run`: it is checked and answered, and not made."""

    actor: str
    reason: str = ""
    dry_run: bool = False


class _DryRunError(Exception):
    """Takes back what a dry run made."""


class Writing:
    """One open transaction."""

    def __init__(self, connection: postgres.Connection, epoch: int, change: Change) -> None:
        self.connection = connection
        self.epoch = epoch
        self.change = change

    async def configure(self, account_id: int, what: str, before: object, after: object) -> None:
        """The entry of a change to the account, and a new version; none where nothing changed."""
        if before == after:
            return
        await self.new_version(account_id)
        await self.connection.execute(
            "INSERT INTO entries"
            " (epoch, at, operation, account_id, bucket_ids, actor, reason, detail)"
            " VALUES ($1, ledger_now(), 'configure', $2, '{}', $3, $4, $5)",
            self.epoch,
            account_id,
            self.change.actor,
            self.change.reason,
            detail(what, before, after),
        )

    async def new_version(self, account_id: int) -> None:
        """Batches that found their budgets and grants before this change look again."""
        await self.connection.execute(
            "INSERT INTO configuration_versions AS v"
            " SELECT CASE kind WHEN 'pool' THEN 0 ELSE coalesce(org_id, id) END, 1"
            " FROM accounts WHERE id = $1"
            " ON CONFLICT (account_id) DO UPDATE SET version = v.version + 1",
            account_id,
        )

    async def lock_account(self, kind: AccountKind, account_id: int) -> asyncpg.Record:
        """Its row; other changes of the account wait. Raises NotFound (<KIND>_UNKNOWN)."""
        row = await self.connection.fetchrow(
            "SELECT * FROM accounts WHERE id = $1 AND kind = $2 FOR NO KEY UPDATE", account_id, kind
        )
        if row is None:
            raise unknown_account(kind, account_id)
        return row


@asynccontextmanager
async def changing(database: Database, change: Change) -> AsyncIterator[Writing]:
    """Commits at the end; a dry run is rolled back, with its notifications.

    Raises:
        Unavailable: the change was not made, or (LEDGER_UNAVAILABLE) it may have been.
    """
    try:
        with suppress(_DryRunError):
            async with database.connection() as connection, connection.transaction():
                # First of all: who closes an epoch waits for those that hold it, and nobody who
                # waits for it may hold a bucket.
                epoch = await connection.fetchval("SELECT current_epoch()")
                yield Writing(connection, epoch, change)
                if change.dry_run:
                    raise _DryRunError
    except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
        raise busy("the account") from error


async def require_account(
    connection: postgres.Connection, kind: AccountKind, account_id: int
) -> None:
    """Raises NotFound (<KIND>_UNKNOWN)."""
    found = await connection.fetchval(
        "SELECT 1 FROM accounts WHERE id = $1 AND kind = $2", account_id, kind
    )
    if not found:
        raise unknown_account(kind, account_id)


def unknown_account(kind: AccountKind, account_id: int) -> errors.NotFound:
    return errors.NotFound(
        f"{format_id(kind, account_id)} does not exist", reason=f"{kind.upper()}_UNKNOWN"
    )


def detail(what: str, before: object, after: object) -> str:
    """JSON of what was and what is; never a secret."""
    return _encode({"what": what, "before": before, "after": after}).decode()
