"""What was sealed, as a digest: a later change to any column of any entry gives another one.

The digest of an epoch is SHA-256 over its entries in the order of their ids, on the digest of the
epoch before it. It proves nothing against somebody who may write to the `epochs` too, unless it is
kept elsewhere: `seal` tells it.
"""

import hashlib
import struct
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from penstock.core import postgres
from penstock.quota.audit.report import Progress, quiet

IDS_CHUNK = 50_000
"""Of ids in one statement, on a grid: the digest does not depend on which ids there are."""
TRIES_MAX = 5
"""A table that is renamed between our two looks has its last name by then."""

# Each column by name: one that a later release adds is no part of what was sealed. Written as text
# without anything that a session may set: a time is its microseconds.
_ROWS = """
    SELECT count(*) AS entries, sha256(string_agg(sha256(convert_to(ROW(
            id, epoch, (extract(epoch FROM at) * 1000000)::bigint, operation, reservation_id,
            account_id, bucket_ids, available, held, suspense, posted, slice_ids, slice_held,
            slice_suspense, slice_posted, slice_lapsed, actor, reason, detail
        )::text, 'UTF8')), ''::bytea ORDER BY id)) AS digest
    FROM {table} WHERE id > $1 AND id <= $2
"""
_ADJUSTMENTS = """
    SELECT count(*) AS adjustments, sha256(coalesce(string_agg(sha256(convert_to(ROW(
            adjustment_key, account_id, reservation_id, amount, entry_id
        )::text, 'UTF8')), ''::bytea ORDER BY entry_id, adjustment_key), ''::bytea)) AS digest
    FROM adjustments WHERE entry_id <= $1
"""
_SEALED = """
    SELECT e.id, e.digest, e.detached_at, coalesce(p.digest, '') AS before
    FROM epochs e LEFT JOIN epochs p ON p.id = e.id - 1
    WHERE e.sealed_at IS NOT NULL ORDER BY e.id
"""


@dataclass(frozen=True, slots=True)
class Verified:
    """Sealed epochs that were read again, each with the digest that its entries have (32 bytes),
    and those whose tables an operator has taken away.
    """

    findings: tuple[str, ...]
    read: tuple[tuple[int, bytes], ...]
    gone: tuple[int, ...]


async def table_of(connection: postgres.Connection, epoch: int) -> str | None:
    """Where the entries of an epoch lie, kept from being renamed; None: nowhere.

    The connection is in a transaction.
    """
    for _ in range(TRIES_MAX):
        table: str | None = await connection.fetchval(
            "SELECT name FROM unnest($1::text[]) AS n (name) WHERE to_regclass(name) IS NOT NULL",
            [f"entries_{epoch}", f"entries_archive_{epoch}"],
        )
        if table is None:
            return None
        try:
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE")
                return table
        except asyncpg.UndefinedTableError:
            continue
    return None


async def entries_digest(
    connection: postgres.Connection, table: str, before: bytes, progress: Progress = quiet
) -> bytes:
    """32 bytes. `before`: the digest of the epoch before; empty: there is none."""
    digest = hashlib.sha256(before)
    bounds = await connection.fetchrow(f"SELECT min(id) AS low, max(id) AS high FROM {table}")  # noqa: S608 - a name of ours
    assert bounds is not None
    if bounds["low"] is None:
        return digest.digest()
    first, last = (bounds["low"] - 1) // IDS_CHUNK, (bounds["high"] - 1) // IDS_CHUNK
    query = _ROWS.format(table=table)
    for n in range(first, last + 1):
        row = await connection.fetchrow(query, n * IDS_CHUNK, (n + 1) * IDS_CHUNK)
        assert row is not None
        if row["entries"]:
            digest.update(struct.pack(">qq", n, row["entries"]) + row["digest"])
        progress("digesting", n + 1 - first, last + 1 - first)
    return digest.digest()


async def adjustments_digest(
    connection: postgres.Connection, last_entry_id: int
) -> tuple[int, bytes]:
    """How many adjustments have an entry up to this one, and their digest."""
    row = await connection.fetchrow(_ADJUSTMENTS, last_entry_id)
    assert row is not None
    return row["adjustments"], row["digest"]


async def check_adjustments(connection: postgres.Connection, epoch: int) -> list[str]:
    """Whether those until a sealed epoch's end are the ones that were there when it was sealed."""
    sealed = await connection.fetchrow(
        "SELECT last_entry_id, adjustments, adjustments_digest FROM epochs WHERE id = $1", epoch
    )
    assert sealed is not None
    count, digest = await adjustments_digest(connection, sealed["last_entry_id"] or 0)
    if (count, digest) == (sealed["adjustments"], sealed["adjustments_digest"]):
        return []
    if count != sealed["adjustments"]:
        was = sealed["adjustments"]
        return [f"until the end of epoch {epoch} {was} adjustments were sealed, {count} are here"]
    return [f"the adjustments until the end of epoch {epoch} are not what was sealed"]


async def verify(connection: postgres.Connection, progress: Progress = quiet) -> Verified:
    """Reads every sealed epoch whose entries are still in the database, detached or not."""
    findings, read, gone = [], [], []
    for row in await connection.fetch(_SEALED):
        epoch, detached_at = row["id"], row["detached_at"]
        table = await table_of(connection, epoch)
        if table is None:
            gone.append(epoch)
            if detached_at is None:
                findings.append(f"epoch {epoch}: its entries are gone, and nobody detached them")
            continue
        digest = await entries_digest(connection, table, row["before"], progress)
        read.append((epoch, digest))
        if digest != row["digest"]:
            findings.append(f"epoch {epoch}: {table} is not what was sealed{_when(detached_at)}")
    return Verified(tuple(findings), tuple(read), tuple(gone))


def _when(detached_at: datetime | None) -> str:
    return "" if detached_at is None else f" (it was detached at {detached_at:%Y-%m-%d %H:%M:%S})"
