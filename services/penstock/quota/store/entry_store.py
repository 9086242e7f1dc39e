"""Entries, newest first, by whatever an operator or a router asks for."""
# ruff: noqa: S608 - of our own texts; values are arguments.

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import asyncpg

from penstock.core import postgres
from penstock.quota.account import AccountKind
from penstock.quota.store.changes import require_account
from penstock.quota.store.database import Database
from penstock.quota.store.detached import Detached, detached_entries

_COLUMNS = """
    SELECT e.id, e.at, e.operation, e.reservation_id, r.request_id, r.attempt, e.account_id,
        a.kind AS account_kind, r.key_id, r.provider, r.model, e.posted, e.held, e.suspense,
        r.end_user, r.tags, e.actor, e.reason, e.detail,
        x.ends AND r.state = 'settled' AS settles, r.prompt_tokens, r.completion_tokens,
        r.estimated, r.overage, e.operation = 'late_settle' OR (x.ends AND r.late) AS late,
        CASE WHEN x.ends THEN r.outcome END AS outcome,
        CASE WHEN x.ends THEN r.trace_id END AS trace_id
    FROM page e
    JOIN accounts a ON a.id = e.account_id
    LEFT JOIN reservations r ON r.id = e.reservation_id
    CROSS JOIN LATERAL (
        SELECT e.operation IN ('settle', 'late_settle', 'void', 'count') AS ends) AS x
    ORDER BY e.id DESC
"""
_BY_ID = "WITH page AS MATERIALIZED (SELECT * FROM entries WHERE id = $1)" + _COLUMNS
_BELOW = {
    "org": "SELECT id FROM accounts WHERE id = {0} OR org_id = {0}",
    "team": "SELECT id FROM accounts WHERE id = {0} OR team_id = {0}",
    "key": "SELECT {0}::bigint AS id",
}


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """What is given must hold, all of it. `account`: entries on it and below it."""

    request_id: str = ""
    key_id: int | None = None
    reservation_id: str = ""
    account: tuple[AccountKind, int] | None = None
    operation: str = ""
    provider: str = ""
    model: str = ""
    end_user: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    until: datetime | None = None


class EntryStore:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def entries(
        self, wanted: EntryFilter, *, before_id: int | None, rows_max: int
    ) -> Sequence[asyncpg.Record]:
        """Newest first, older than the entry `before_id`. Raises NotFound: the account."""
        query, arguments = entries_query(wanted, before_id=before_id, rows_max=rows_max)
        async with self._database.connection() as connection, connection.transaction():
            if wanted.account is not None:
                await require_account(connection, *wanted.account)
            if wanted.key_id is not None:
                await require_account(connection, "key", wanted.key_id)
            # What is asked for differs from call to call: no plan of another call fits, nor one
            # that was made for an empty table.
            await connection.execute("SET LOCAL enable_seqscan = off")
            await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            rows: Sequence[asyncpg.Record] = await connection.fetch(query, *arguments)
        return rows

    async def detached(self, since: datetime | None, until: datetime | None) -> Detached | None:
        """What of this time is no longer in the ledger; None: nothing."""
        async with self._database.connection() as connection:
            return await detached_entries(connection, since, until)


async def entry_by_id(connection: postgres.Connection, entry_id: int) -> asyncpg.Record | None:
    """None: its partition was detached."""
    return await connection.fetchrow(_BY_ID, entry_id)


def entries_query(
    wanted: EntryFilter, *, before_id: int | None, rows_max: int
) -> tuple[str, list[Any]]:
    """The statement and its arguments. Only the conditions that are given are in it, so that each
    question is answered by the index that fits it.
    """
    arguments: list[Any] = []

    def place(value: Any) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    source = _source(wanted, place)
    conditions = _conditions(wanted, source, before_id, place)
    joined = any(" r." in f" {condition}" or "(r." in condition for condition in conditions)
    # A pool's own entries, of its configuration and credit, have no reservation.
    join = " LEFT JOIN reservations r ON r.id = e.reservation_id" if joined else ""
    where = " AND ".join(conditions) or "true"
    limit = place(rows_max)
    page = f"SELECT e.* FROM entries e{join} WHERE {where} ORDER BY e.id DESC LIMIT {limit}"
    if source is not None:
        # The newest of each account or reservation by its own index, then the newest of these.
        page = (
            f"SELECT n.* FROM ({source.ids}) AS l"
            f" CROSS JOIN LATERAL ({page}) AS n ORDER BY n.id DESC LIMIT {limit}"
        )
    return f"WITH page AS MATERIALIZED ({page})" + _COLUMNS, arguments


@dataclass(frozen=True, slots=True)
class _Source:
    """A query of ids, and the indexed column of the entries that they are found by."""

    ids: str
    column: str


def _source(wanted: EntryFilter, place: Any) -> _Source | None:
    """The narrowest that is asked for; None: all entries."""
    if wanted.reservation_id:
        return _Source(f"SELECT {place(wanted.reservation_id)}::uuid AS id", "reservation_id")
    if wanted.request_id:
        ids = f"SELECT id FROM reservations WHERE request_id = {place(wanted.request_id)}"
        return _Source(ids, "reservation_id")
    if wanted.key_id is not None:
        return _Source(_BELOW["key"].format(place(wanted.key_id)), "account_id")
    if wanted.account is not None and wanted.account[0] != "pool":
        kind, number = wanted.account
        return _Source(_BELOW[kind].format(place(number)), "account_id")
    return None


def _conditions(
    wanted: EntryFilter, source: _Source | None, before_id: int | None, place: Any
) -> list[str]:
    conditions = [] if source is None else [f"e.{source.column} = l.id"]
    if before_id is not None:
        # A reservation has few entries: the index of ids would only be in the way.
        by_reservation = source is not None and source.column == "reservation_id"
        conditions.append(f"e.id{' + 0' if by_reservation else ''} < {place(before_id)}")
    if wanted.request_id and wanted.reservation_id:
        conditions.append(f"r.request_id = {place(wanted.request_id)}")
    by_account = source is not None and source.column == "account_id"
    if wanted.key_id is not None and not by_account:
        conditions.append(f"e.account_id = {place(wanted.key_id)}")
    if wanted.account is not None:
        kind, number = wanted.account
        if kind == "pool":
            conditions.append(f"coalesce(r.pool_id, e.account_id) = {place(number)}")
        elif wanted.key_id is not None or not by_account:
            conditions.append(f"e.account_id IN ({_BELOW[kind].format(place(number))})")
    simple: list[tuple[str, Any]] = [
        ("e.operation::text = {}", wanted.operation or None),
        ("e.at >= {}", wanted.since),
        ("e.at < {}", wanted.until),
        ("r.provider = {}", wanted.provider or None),
        ("r.model = {}", wanted.model or None),
        ("r.end_user = {}", wanted.end_user or None),
        ("r.tags @> {}", json.dumps(dict(wanted.tags)) if wanted.tags else None),
    ]
    conditions += [text.format(place(value)) for text, value in simple if value is not None]
    return conditions
