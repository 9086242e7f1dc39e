"""Recomputes every balance from the entries and names whatever differs.

One repeatable-read snapshot, read in ranges of ids: memory is bounded, and progress is real.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from penstock.core import postgres
from penstock.quota.audit import digests, queries, reservations, settings
from penstock.quota.audit.report import AuditReport, Findings, Progress, quiet

ENTRIES_CHUNK_MIN = 50_000
"""Entries in one statement; enough that a round trip is nothing against it."""
ENTRIES_CHUNKS_MAX = 64
"""Each chunk leaves one partial sum a bucket in a temporary table, so there are not many chunks."""
RESERVATIONS_CHUNK = 50_000
BUCKETS_CHUNK = 50_000
WORK_MEM = "64MB"
"""Of one sort or hash: above it PostgreSQL spills to disk."""
EPOCH_MAX = 2**31 - 1
ID_MAX = 2**63 - 1
UUID_MAX = UUID(int=2**128 - 1)

LEGS = "each entry's debits equal its credits"
FOLDS = "each balance is the fold of its entries"
RESERVATIONS = "each reservation is the fold of its entries"
RATES = "each rate limit holds what its reservations hold"
LIMITS = "nothing was admitted over a limit"
GRANTS = "each grant gave no more than it had"
SETTINGS = "each setting is what its last entry says"
ADJUSTMENTS = "each adjustment is one entry"
CHECKPOINTS = "each checkpoint is the fold of what lies before it"
DIGESTS = "each sealed epoch is as it was sealed"

_CHECKS = (
    LEGS, FOLDS, RESERVATIONS, RATES, LIMITS, GRANTS, SETTINGS, ADJUSTMENTS, CHECKPOINTS, DIGESTS,
)  # fmt: skip
_BUCKET_CHECKS = {
    FOLDS: queries.BALANCES,
    RATES: queries.RATES,
    LIMITS: queries.OVER_LIMIT,
    GRANTS: queries.OVER_GRANT,
}


@dataclass
class Examination:
    """One pass over one snapshot; the connection is in the transaction of `snapshot`.

    Attributes:
        base: Epoch whose checkpoint is built on; 0: none.
        sealed: Whether the entries of all sealed epochs are read again, too.
        epochs: Of each epoch after it: entries, nano-USD posted.
    """

    connection: postgres.Connection
    base: int
    progress: Progress = quiet
    sealed: bool = False
    findings: Findings = field(default_factory=lambda: Findings(_CHECKS))
    epochs: dict[int, tuple[int, int]] = field(default_factory=dict)
    reservations: int = 0
    buckets: int = 0

    async def run(self) -> AuditReport:
        connection = self.connection
        await connection.execute(queries.SCRATCH + settings.SCRATCH)
        await connection.execute(queries.LOAD_CHECKPOINT, self.base)
        await connection.execute(settings.LOAD_CHECKPOINT, self.base)
        await connection.execute(queries.LOAD_LIVE, self.base)
        await connection.execute(queries.LOAD_PRUNED_USES)
        await self._fold_entries()
        await connection.execute(queries.INDEX_FOLDS)
        await self._check_settings()
        await self._check_reservations()
        await self._check_buckets()
        await self._check_checkpoints()
        verified = await self._check_digests()
        posted = await connection.fetchval("SELECT posted FROM epochs WHERE id = $1", self.base)
        return AuditReport(
            checks=self.findings.checks(),
            entries=sum(entries for entries, _ in self.epochs.values()),
            reservations=self.reservations,
            buckets=self.buckets,
            posted_nano_usd=int(posted or 0) + sum(p for _, p in self.epochs.values()),
            base_epoch=self.base or None,
            epochs=tuple((id_, *figures) for id_, figures in sorted(self.epochs.items())),
            verified_epochs=tuple((epoch, digest.hex()) for epoch, digest in verified.read),
            gone_epochs=verified.gone,
        )

    async def _look(self, name: str, query: str, *arguments: object) -> None:
        room = self.findings.room(name)
        if room <= 0:
            return
        rows = await self.connection.fetch(
            f"SELECT * FROM ({query}) AS found LIMIT {room}",  # noqa: S608 - of `queries`
            *arguments,
        )
        self.findings.add(name, [row[0] for row in rows])

    async def _fold_entries(self) -> None:
        row = await self.connection.fetchrow(
            "SELECT coalesce(min(id), 1) - 1 AS low, coalesce(max(id), 0) AS high FROM entries"
            " WHERE epoch > $1",
            self.base,
        )
        assert row is not None
        low, high = row["low"], row["high"]
        width = max(ENTRIES_CHUNK_MIN, -(-(high - low) // ENTRIES_CHUNKS_MAX))
        for start in range(low, high, width):
            bounds = (start, start + width, self.base)
            for found in await self.connection.fetch(queries.COUNT_ENTRIES, *bounds):
                entries, posted = self.epochs.get(found["epoch"], (0, 0))
                self.epochs[found["epoch"]] = (
                    entries + found["entries"],
                    posted + int(found["posted"]),
                )
                if found["broken"]:
                    await self._look(LEGS, queries.BROKEN_ENTRIES, *bounds)
            await self.connection.execute(queries.FOLD_ENTRIES, *bounds)
            await self.connection.execute(settings.LOAD_ACTS, *bounds)
            self.progress("entries", min(start + width, high) - low, high - low)

    async def ranges_of_reservations(self, stage: str) -> AsyncIterator[tuple[UUID, UUID]]:
        """Half-open ranges (low, high] that cover every id; tells its progress."""
        if not self.reservations:
            counted = await self.connection.fetchval("SELECT count(*) FROM reservations")
            self.reservations = int(counted)
        low, done = UUID(int=0), 0
        while low != UUID_MAX:
            high = await self.connection.fetchval(
                "SELECT id FROM reservations WHERE id > $1 ORDER BY id OFFSET $2 LIMIT 1",
                low,
                RESERVATIONS_CHUNK - 1,
            )
            high = UUID_MAX if high is None else UUID(bytes=high.bytes)
            yield low, high
            low, done = high, min(done + RESERVATIONS_CHUNK, self.reservations)
            self.progress(stage, done, max(self.reservations, 1))

    async def _check_settings(self) -> None:
        await self.connection.execute(settings.LOAD_SETTINGS)
        await self.connection.execute(settings.INDEX_SETTINGS)
        await self.connection.execute(settings.LOAD_LIMITS)
        await self._look(SETTINGS, settings.DIFFERENCES)
        await self._look(SETTINGS, settings.GAPS)
        self.progress("settings", 1, 1)
        behind = await self.connection.fetchval(
            "SELECT last_entry_id FROM epochs WHERE id = $1", self.base
        )
        await self._look(ADJUSTMENTS, settings.ADJUSTMENTS, behind or 0)
        if self.base:
            found = await digests.check_adjustments(self.connection, self.base)
            self.findings.add(ADJUSTMENTS, found)

    async def _check_reservations(self) -> None:
        async for low, high in self.ranges_of_reservations("reservations"):
            await self._look(
                RESERVATIONS, reservations.RESERVATIONS, low, high, self.base, EPOCH_MAX
            )
            await self.connection.execute(queries.FOLD_USES, low, high)
        await self.connection.execute(queries.INDEX_USES)

    async def _check_buckets(self) -> None:
        self.buckets = int(await self.connection.fetchval("SELECT count(*) FROM buckets"))
        low, done = 0, 0
        while low != ID_MAX:
            high = await self.connection.fetchval(
                "SELECT id FROM buckets WHERE id > $1 ORDER BY id OFFSET $2 LIMIT 1",
                low,
                BUCKETS_CHUNK - 1,
            )
            high = ID_MAX if high is None else high
            for name, query in _BUCKET_CHECKS.items():
                await self._look(name, query, low, high)
            low, done = high, min(done + BUCKETS_CHUNK, self.buckets)
            self.progress("balances", done, max(self.buckets, 1))

    async def _check_checkpoints(self) -> None:
        rows = await self.connection.fetch(
            "SELECT id FROM epochs WHERE sealed_at IS NOT NULL AND id > $1 ORDER BY id", self.base
        )
        for done, row in enumerate(rows, 1):
            await self._look(CHECKPOINTS, queries.CHECKPOINT, row["id"])
            await self._look(CHECKPOINTS, settings.CHECKPOINT, row["id"])
            self.progress("checkpoints", done, len(rows))

    async def _check_digests(self) -> digests.Verified:
        if not self.sealed:
            return digests.Verified((), (), ())
        verified = await digests.verify(self.connection, self.progress)
        self.findings.add(DIGESTS, verified.findings)
        return verified


@asynccontextmanager
async def snapshot(connection: postgres.Connection) -> AsyncIterator[None]:
    """A transaction that sees the ledger as it was at one moment, with no end to its patience."""
    async with connection.transaction(isolation="repeatable_read"):
        # Before the snapshot is taken: a detach does not wait for a snapshot, only for this lock,
        # and takes a partition away from under a reader that has not read the entries yet.
        await connection.execute("LOCK TABLE entries IN ACCESS SHARE MODE")
        # A full pass over a large ledger may take its time. Its ranges are read by index: a scan of
        # the whole table for each would never end.
        await connection.execute(
            "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;"
            f"SET LOCAL work_mem = '{WORK_MEM}'; SET LOCAL jit = off;"
            "SET LOCAL random_page_cost = 1.1; SET LOCAL enable_seqscan = off"
        )
        yield


async def audit(
    connection: postgres.Connection, *, full: bool = False, progress: Progress = quiet
) -> AuditReport:
    """Audits over one connection. `full`: also what lies behind the newest checkpoint, and whether
    the entries of each sealed epoch are those that were sealed.
    """
    async with snapshot(connection):
        base = await connection.fetchval(queries.OLDEST_BASE if full else queries.SEALED_BASE)
        return await Examination(connection, base, progress, sealed=full).run()


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of one's own, on which a statement may take as long as it takes."""
    connection = await asyncpg.connect(
        dsn,
        timeout=postgres.CONNECT_TIMEOUT_SECONDS,
        server_settings={"application_name": "penstock-audit", "statement_timeout": "0"},
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=postgres.CONNECT_TIMEOUT_SECONDS)


async def audit_dsn(dsn: str, *, full: bool = False, progress: Progress = quiet) -> AuditReport:
    """For the command line: connects, audits, disconnects."""
    async with connected(dsn) as connection:
        return await audit(connection, full=full, progress=progress)
