"""Closes the open epoch, proves the closed one, and keeps its balances as a checkpoint.

Each step is a transaction of its own and is skipped where it was done before, so that a seal may be
killed at any moment and run again. Until its proof is committed an epoch is merely closed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg

from penstock.core import postgres
from penstock.quota.audit import digests, queries, reservations, settings
from penstock.quota.audit.auditor import Examination, connected, snapshot
from penstock.quota.audit.report import AuditReport, Busy, Progress, quiet

LOCK_TIMEOUT_MS = 100
"""Batches queue behind a lock that waits for an older transaction: it waits no longer than this."""
TRIES_MAX = 100
TRIES_PAUSE_SECONDS = 0.2
"""Between two tries: the batches that queued go first."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a seal came to.

    Attributes:
        epoch: Which was proven; None: there was nothing to seal.
        report: Of the proof; not `ok`: nothing was sealed.
        buckets: Balances in the checkpoint.
        reservations: Those that held or were suspected at its end.
        digest: Of its entries, in hexadecimal.
    """

    epoch: int | None
    report: AuditReport | None = None
    buckets: int = 0
    reservations: int = 0
    digest: str = ""

    @property
    def ok(self) -> bool:
        return self.report is None or self.report.ok


@asynccontextmanager
async def maintenance(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection, one at a time over the whole database: the next waits."""
    async with connected(dsn) as connection:
        # Not waited for within a statement: its snapshot would hold up the end of a detach, which
        # holds this lock.
        while not await connection.fetchval(  # noqa: ASYNC110 - nobody tells when it is free
            "SELECT pg_try_advisory_lock(hashtext('penstock.maintenance'))"
        ):
            await asyncio.sleep(TRIES_PAUSE_SECONDS)
        yield connection


async def patiently(
    connection: postgres.Connection, work: Callable[[], Awaitable[None]], what: str
) -> None:
    """Does it once its locks can be had at once, so that nobody waits long behind it.

    Raises:
        Busy: they could not, in all the tries.
    """
    await connection.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    try:
        for _ in range(TRIES_MAX):
            try:
                await work()
                return
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                await asyncio.sleep(TRIES_PAUSE_SECONDS)
    finally:
        if not connection.is_closed():
            await connection.execute("SET lock_timeout = 0")
    raise Busy(f"{what}: another transaction holds a lock for too long; try again")


async def open_epoch(connection: postgres.Connection) -> int | None:
    """The number of the one that is open. None: it has no entry yet."""
    epoch: int = await connection.fetchval("SELECT id FROM epochs WHERE closed_at IS NULL")
    query = "SELECT EXISTS (SELECT FROM entries WHERE epoch = $1)"
    return epoch if await connection.fetchval(query, epoch) else None


async def close_epoch(connection: postgres.Connection, progress: Progress = quiet) -> int | None:
    """Begins a new epoch; the number of the one that it closed. None: it has no entry yet.

    Raises:
        Busy: a transaction that writes entries went on for too long.
    """
    epoch = await open_epoch(connection)
    if epoch is None:
        return None

    async def prepare() -> None:
        await connection.execute("SELECT create_partition($1)", epoch + 1)

    async def close() -> None:
        async with connection.transaction():
            # Waits for the batches under way; those that come now wait for this.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('penstock.epoch'))")
            await connection.execute(
                "WITH closed AS ("
                " UPDATE epochs SET closed_at = ledger_now() WHERE id = $1 RETURNING closed_at)"
                " INSERT INTO epochs (id, began_at) SELECT $1 + 1, closed_at FROM closed",
                epoch,
            )

    progress("preparing", 0, 1)
    await patiently(connection, prepare, f"making the partition of epoch {epoch + 1}")
    progress("closing", 0, 1)
    await patiently(connection, close, f"closing epoch {epoch}")
    progress("closed", 1, 1)
    return epoch


class _DryRunError(Exception):
    """Takes back what a dry run wrote."""


async def prove(
    connection: postgres.Connection,
    epoch: int,
    progress: Progress = quiet,
    *,
    dry_run: bool = False,
) -> Sealed:
    """Seals a closed epoch if everything holds: the last checkpoint, its entries and the later ones
    are the balances of this moment, in one snapshot.

    A dry run writes it all and takes it back; the epoch may be open then.
    """
    sealed = Sealed(None)
    with suppress(_DryRunError):
        async with snapshot(connection):
            base: int = await connection.fetchval(queries.SEALED_BASE)
            examination = Examination(connection, base, progress)
            report = await examination.run()
            if not report.ok:
                return Sealed(epoch, report)
            sealed = await _write(examination, report, epoch)
            if dry_run:
                raise _DryRunError
            progress("committing", 0, 1)
    if not dry_run:
        progress("sealed", 1, 1)
    return sealed


async def _write(examination: Examination, report: AuditReport, epoch: int) -> Sealed:
    """The checkpoint of an epoch that was proven; in the transaction of its proof."""
    connection, base, progress = examination.connection, examination.base, examination.progress
    progress("writing", 0, 1)
    buckets = await connection.execute(queries.WRITE_CHECKPOINT, epoch)
    await connection.execute(settings.WRITE_CHECKPOINT, epoch)
    open_reservations = 0
    async for low, high in examination.ranges_of_reservations("carrying over"):
        written = await connection.execute(reservations.CARRY, low, high, base, epoch)
        open_reservations += rows_of(written)
    last = await connection.fetchval("SELECT max(id) FROM entries WHERE epoch = $1", epoch)
    count, adjustments = await digests.adjustments_digest(connection, last or 0)
    before = await connection.fetchval("SELECT digest FROM epochs WHERE id = $1", epoch - 1)
    digest = await digests.entries_digest(
        connection, f"entries_{epoch}", before or b"", examination.progress
    )
    await connection.execute(
        "UPDATE epochs e SET sealed_at = ledger_now(),"
        " entries = coalesce(b.entries, 0) + $2, posted = coalesce(b.posted, 0) + $3,"
        " digest = $5, last_entry_id = $6, adjustments = $7, adjustments_digest = $8"
        " FROM (VALUES (1)) AS one LEFT JOIN epochs b ON b.id = $4 WHERE e.id = $1",
        epoch,
        *_until(report, epoch),
        base,
        digest,
        last,
        count,
        adjustments,
    )
    return Sealed(epoch, report, rows_of(buckets), open_reservations, digest.hex())


async def seal(dsn: str, progress: Progress = quiet, *, dry_run: bool = False) -> Sealed:
    """Closes the open epoch and seals it; first one that was closed before and never sealed.

    A dry run says what it would come to at this moment, and changes nothing.

    Raises:
        Busy: a transaction that writes entries went on for too long.
    """
    async with maintenance(dsn) as connection:
        epoch = await connection.fetchval(
            "SELECT min(id) FROM epochs WHERE closed_at IS NOT NULL AND sealed_at IS NULL"
        )
        if epoch is None:
            epoch = await (open_epoch(connection) if dry_run else close_epoch(connection, progress))
        if epoch is None:
            return Sealed(None)
        return await prove(connection, epoch, progress, dry_run=dry_run)


def _until(report: AuditReport, epoch: int) -> tuple[int, int]:
    """Entries and nano-USD posted until the end of the epoch, from the base on."""
    before = [figures for figures in report.epochs if figures[0] <= epoch]
    return sum(entries for _, entries, _ in before), sum(posted for *_, posted in before)


def rows_of(status: str) -> int:
    """Of a command's tag, `INSERT 0 12` or `DELETE 12`."""
    return int(status.rsplit(" ", 1)[1])
