"""Takes the entries of sealed epochs out of the ledger, into tables of their own.

What is taken out stays in the database as `entries_archive_<epoch>`, append-only, until an operator
has put it elsewhere and drops it.
"""

from datetime import datetime

import asyncpg

from penstock.core import postgres
from penstock.quota.audit.report import Progress, quiet
from penstock.quota.audit.sealing import maintenance, patiently

_STATE = """
    SELECT i.inhdetachpending AS pending
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'entries'::regclass AND c.relname = $1
"""


async def detach(
    dsn: str,
    *,
    keep: int | None = None,
    before: datetime | None = None,
    progress: Progress = quiet,
    dry_run: bool = False,
) -> list[int]:
    """Detaches sealed epochs, oldest first, and names them.

    Args:
        dsn: The ledger's database.
        keep: So many of the newest sealed epochs stay.
        before: Only epochs that were closed before it. Both may be given.
        progress: Told after each epoch.
        dry_run: They are named, and stay.

    Raises:
        ValueError: neither is given, or `keep` is negative.
        Busy: a reader of the entries went on for too long. What was begun is ended by the next run.
    """
    if (keep is None and before is None) or (keep is not None and keep < 0):
        raise ValueError("say which epochs: how many of the newest to keep, or a date")
    async with maintenance(dsn) as connection:
        rows = await connection.fetch(
            "SELECT id, closed_at, detached_at FROM epochs WHERE sealed_at IS NOT NULL ORDER BY id"
        )
        chosen = [
            row["id"]
            for row in (rows[: max(len(rows) - keep, 0)] if keep is not None else rows)
            if row["detached_at"] is None and (before is None or row["closed_at"] < before)
        ]
        if dry_run:
            return chosen
        for done, epoch in enumerate(chosen):
            progress("detaching", done, len(chosen))
            await _detach_one(connection, epoch)
        if chosen:
            progress("detaching", len(chosen), len(chosen))
        return chosen


async def _detach_one(connection: asyncpg.Connection, epoch: int) -> None:
    """Goes on from wherever a run that was killed has left it."""
    name = f"entries_{epoch}"

    async def take_out() -> None:
        state = await connection.fetchrow(_STATE, name)
        if state is None:
            return
        # Outside of a transaction; waits for whoever reads or writes entries, and stalls nobody.
        # One that was interrupted leaves the partition half-way out.
        how = "FINALIZE" if state["pending"] else "CONCURRENTLY"
        await connection.execute(f"ALTER TABLE entries DETACH PARTITION {name} {how}")

    async def put_away() -> None:
        async with connection.transaction():
            if await connection.fetchval("SELECT to_regclass($1)", name) is not None:
                # The trigger that kept it append-only was the ledger's.
                await connection.execute(
                    "CREATE OR REPLACE TRIGGER entries_append_only"
                    f" BEFORE UPDATE OR DELETE ON {name} FOR EACH ROW"
                    " EXECUTE FUNCTION refuse_change();"
                    f"ALTER TABLE {name} RENAME TO entries_archive_{epoch}"
                )
            await _mark(connection, epoch)

    await patiently(connection, take_out, f"detaching epoch {epoch}")
    await patiently(connection, put_away, f"renaming {name}")


async def _mark(connection: postgres.Connection, epoch: int) -> None:
    status = await connection.execute(
        "UPDATE epochs SET detached_at = ledger_now()"
        " WHERE id = $1 AND sealed_at IS NOT NULL AND detached_at IS NULL",
        epoch,
    )
    assert status == "UPDATE 1", f"epoch {epoch} is not sealed, or was detached by somebody else"
