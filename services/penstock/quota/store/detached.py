"""Which entries are no longer in the ledger: those of epochs that were detached."""

from dataclasses import dataclass
from datetime import datetime

from penstock.core import postgres

TABLES_MAX = 100
"""In one answer: it is a hint, not a catalogue."""

_DETACHED = """
    SELECT closed_at, name, to_regclass(name) IS NOT NULL AS is_here
    FROM epochs e, LATERAL (SELECT format('entries_archive_%s', e.id) AS name) AS n
    WHERE detached_at IS NOT NULL
        AND closed_at >= coalesce($1, '-infinity'::timestamptz)
        AND began_at < coalesce($2, 'infinity'::timestamptz)
    ORDER BY id DESC
"""


@dataclass(frozen=True, slots=True)
class Detached:
    """Entries from before this time, and the tables that hold them, newest first; none: they were
    put elsewhere.
    """

    before: datetime
    tables: tuple[str, ...]


async def detached_entries(
    connection: postgres.Connection, since: datetime | None, until: datetime | None
) -> Detached | None:
    """None: all entries of this time are in the ledger."""
    rows = await connection.fetch(_DETACHED, since, until)
    if not rows:
        return None
    tables = [row["name"] for row in rows if row["is_here"]]
    return Detached(max(row["closed_at"] for row in rows), tuple(tables[:TABLES_MAX]))
