"""Grants in PostgreSQL: prepaid credit, made once and never renewed by itself."""

from typing import Any

import asyncpg
import msgspec

from penstock.core import errors, postgres
from penstock.quota.account import AccountKind, format_grant_id, format_id
from penstock.quota.budget import Grant, GrantWish
from penstock.quota.store.budget_store import scope_columns, scope_of
from penstock.quota.store.changes import Change, Writing, changing, detail, require_account
from penstock.quota.store.database import Database
from penstock.quota.store.reused import reused

_GRANTS = """
    SELECT g.*, nullif(g.expires_at, 'infinity') AS ends_at, a.kind AS account_kind, b.posted,
        b.held, b.suspense, b.lapsed, b.id AS bucket_id
    FROM grants g
    JOIN accounts a ON a.id = g.account_id
    JOIN buckets b ON b.grant_id = g.id
"""

OPEN_GRANTS_MAX = 1_000
"""Of one account, with something left. A batch of its operations locks them all."""

_ASKED = ("amount_nano_usd", "starts_at", "expires_at", "commercial_use", "name", "reason")
"""Fields of a wish that are called the same in the contract."""


class GrantStore:
    """What operators give, and what is left of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_grant(self, change: Change, wish: GrantWish) -> tuple[Grant, bool]:
        """The grant, and whether this is a repeat: it was there before, whatever became of it.

        Raises:
            NotFound: the account.
            Conflict: GRANT_KEY_REUSED.
            InvalidRequest: GRANT_ENDS_BEFORE_START, EXPIRES_AT_PAST.
            FailedPrecondition: GRANTS_TOO_MANY.
        """
        async with changing(self._database, change) as writing:
            connection = writing.connection
            await writing.lock_account(wish.account_kind, wish.account_id)
            asked = msgspec.json.encode(wish).decode()
            grant_id = None
            # A repeat of a grant that has ended meanwhile is no fault: it is looked for first.
            if not await connection.fetchval(
                "SELECT 1 FROM grants WHERE grant_key = $1", wish.grant_key
            ):
                try:
                    grant_id = await _insert(connection, wish, asked)
                except asyncpg.CheckViolationError:
                    raise _ends_before_start() from None
            if grant_id is None:
                return await _repeated(connection, wish, asked), True
            await _check_count(connection, wish)
            bucket_id = await connection.fetchval(
                "INSERT INTO buckets (grant_id, unit) VALUES ($1, 'nano_usd') RETURNING id",
                grant_id,
            )
            grant = _grant(await connection.fetchrow(_GRANTS + "WHERE g.id = $1", grant_id))
            await _check_expiry(connection, grant)
            await writing.new_version(wish.account_id)
            await _enter(
                writing,
                "grant",
                grant,
                bucket_id,
                0,
                detail("create_grant", None, grant.settings()),
            )
        return grant, False

    async def end_grant(self, change: Change, grant_id: int) -> Grant:
        """Ends it now; what is not held lapses, and what is held lapses when it comes back.

        Again is no fault. Raises NotFound (GRANT_UNKNOWN).
        """
        async with changing(self._database, change) as writing:
            connection = writing.connection
            row = await _lock(connection, grant_id)
            if row is None:
                raise errors.NotFound(
                    f"{format_grant_id(grant_id)} does not exist", reason="GRANT_UNKNOWN"
                )
            before = _grant(row)
            # One that has not begun never does.
            await connection.execute(
                "UPDATE grants SET expires_at = n.at,"
                " starts_at = least(starts_at, n.at - interval '1 microsecond')"
                " FROM (SELECT ledger_now() AS at) AS n WHERE id = $1 AND expires_at > n.at",
                grant_id,
            )
            after = _grant(await connection.fetchrow(_GRANTS + "WHERE g.id = $1", grant_id))
            await writing.configure(
                after.account_id, "end_grant", before.settings(), after.settings()
            )
            await _lapse(writing, after, row["bucket_id"])
            ended = await connection.fetchrow(_GRANTS + "WHERE g.id = $1", grant_id)
        return _grant(ended)

    async def list_grants(self, account: tuple[AccountKind, int] | None) -> list[Grant]:
        """Ended ones too, soonest-expiring first. Raises NotFound: the account."""
        async with self._database.connection() as connection:
            if account is not None:
                await require_account(connection, *account)
            rows = await connection.fetch(
                _GRANTS + "WHERE $1::bigint IS NULL OR g.account_id = $1"
                " ORDER BY a.kind, g.account_id, g.expires_at, g.id",
                None if account is None else account[1],
            )
        return [_grant(row) for row in rows]


async def _insert(connection: postgres.Connection, wish: GrantWish, asked: str) -> int | None:
    grant_id: int | None = await connection.fetchval(
        "INSERT INTO grants (grant_key, account_id, name, reason, amount, starts_at, expires_at,"
        " providers, models, tags, commercial_use, created_at, asked)"
        " SELECT $1, $2, $3, $4, $5, coalesce($6, n.at), coalesce($7, 'infinity'::timestamptz),"
        " $8, $9, $10, $11, n.at, $12 FROM (SELECT ledger_now() AS at) AS n"
        " ON CONFLICT (grant_key) DO NOTHING RETURNING id",
        wish.grant_key,
        wish.account_id,
        wish.name,
        wish.reason,
        wish.amount_nano_usd,
        wish.starts_at,
        wish.expires_at,
        *scope_columns(wish.scope),
        wish.commercial_use,
        asked,
    )
    return grant_id


async def _repeated(connection: postgres.Connection, wish: GrantWish, asked: str) -> Grant:
    row = await connection.fetchrow(
        _GRANTS + "WHERE g.grant_key = $1 AND g.asked = $2::jsonb", wish.grant_key, asked
    )
    if row is None:
        was = await connection.fetchval(
            "SELECT asked FROM grants WHERE grant_key = $1", wish.grant_key
        )
        raise reused("grant", wish.grant_key, _asked(was), _asked(asked))
    return _grant(row)


def _asked(document: str) -> dict[str, object]:
    """What was asked, by the contract's names of the fields."""
    told = msgspec.json.decode(document, type=dict[str, Any])
    scope = told.get("scope", {})
    return {
        "account_id": f"{told.get('account_kind')}_{told.get('account_id')}",
        **{f"scope.{name}": scope.get(name) for name in ("providers", "models", "tags")},
        **{name: told.get(name) for name in _ASKED},
    }


async def _check_count(connection: postgres.Connection, wish: GrantWish) -> None:
    """Of those that were there before: the new one has no bucket yet."""
    count = await connection.fetchval(
        "SELECT count(*) FROM grants g JOIN buckets b ON b.grant_id = g.id"
        " WHERE g.account_id = $1 AND g.expires_at > ledger_now()"
        " AND b.posted + b.lapsed < g.amount",
        wish.account_id,
    )
    if count >= OPEN_GRANTS_MAX:
        raise errors.FailedPrecondition(
            f"{format_id(wish.account_kind, wish.account_id)} has {count} grants that are not used"
            f" up, of at most {OPEN_GRANTS_MAX}; end some, or grant larger amounts",
            reason="GRANTS_TOO_MANY",
        )


async def _check_expiry(connection: postgres.Connection, grant: Grant) -> None:
    if await connection.fetchval("SELECT $1::timestamptz <= ledger_now()", grant.expires_at):
        raise errors.InvalidRequest.of(
            [errors.FieldViolation("expires_at", "lies in the past: it could never be used")],
            reason="EXPIRES_AT_PAST",
        )


def _ends_before_start() -> errors.InvalidRequest:
    return errors.InvalidRequest.of(
        [errors.FieldViolation("expires_at", "does not lie after starts_at (absent: now)")],
        reason="GRANT_ENDS_BEFORE_START",
    )


async def _lock(connection: postgres.Connection, grant_id: int) -> asyncpg.Record | None:
    """The bucket first, as every batch does; then it is read."""
    await connection.execute(
        "SELECT 1 FROM buckets WHERE grant_id = $1 FOR NO KEY UPDATE", grant_id
    )
    return await connection.fetchrow(_GRANTS + "WHERE g.id = $1", grant_id)


async def _lapse(writing: Writing, grant: Grant, bucket_id: int) -> None:
    if grant.rest_nano_usd <= 0:
        return
    await writing.connection.execute(
        "UPDATE buckets SET lapsed = lapsed + $2 WHERE id = $1", bucket_id, grant.rest_nano_usd
    )
    await _enter(writing, "lapse", grant, bucket_id, grant.rest_nano_usd, None)


async def _enter(
    writing: Writing, operation: str, grant: Grant, bucket_id: int, lapsed: int, text: str | None
) -> None:
    await writing.connection.execute(
        "INSERT INTO entries (epoch, at, operation, account_id, bucket_ids, slice_ids, slice_held,"
        " slice_suspense, slice_posted, slice_lapsed, actor, reason, detail)"
        " VALUES ($1, ledger_now(), $2, $3, '{}', $4, '{0}', '{0}', '{0}', $5, $6, $7, $8)",
        writing.epoch,
        operation,
        grant.account_id,
        [bucket_id],
        [lapsed],
        writing.change.actor,
        writing.change.reason or grant.reason,
        text,
    )


def _grant(row: Any) -> Grant:
    return Grant(
        id=row["id"],
        grant_key=row["grant_key"],
        account_kind=row["account_kind"],
        account_id=row["account_id"],
        name=row["name"],
        reason=row["reason"],
        amount_nano_usd=row["amount"],
        starts_at=row["starts_at"],
        expires_at=row["ends_at"],
        scope=scope_of(row),
        commercial_use=row["commercial_use"],
        posted_nano_usd=row["posted"],
        held_nano_usd=row["held"],
        suspense_nano_usd=row["suspense"],
        lapsed_nano_usd=row["lapsed"],
        created_at=row["created_at"],
    )
