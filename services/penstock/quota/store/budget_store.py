"""Budgets and rate limits in PostgreSQL: one table, and one bucket a window."""

import json
from collections.abc import Sequence
from typing import Any

from penstock.core import errors, postgres
from penstock.quota.account import AccountKind, BudgetUnit, format_budget_id, format_id
from penstock.quota.budget import EVERYTHING, Budget, BudgetWish, Scope, glob_to_like, like_to_glob
from penstock.quota.store.account_store import notify_keys
from penstock.quota.store.changes import Change, Writing, changing, require_account
from penstock.quota.store.database import Database

BUDGETS_MAX = 64
"""Open ones of one account, rate limits counted: each is a row that every attempt locks."""

_BUDGETS = """
    SELECT x.id, a.kind AS account_kind, x.account_id, x.unit, x.kind AS "window", x.name,
        x.time_zone, x.limit_amount, x.providers, x.models, x.tags, x.soft_percents,
        x.closed_at IS NOT NULL AS closed, coalesce(b.posted, 0) AS posted,
        coalesce(b.held, 0) AS held, coalesce(b.suspense, 0) AS suspense,
        window_end(x.kind, x.time_zone, w.key) AS resets_at
    FROM budgets x
    JOIN accounts a ON a.id = x.account_id
    CROSS JOIN LATERAL (SELECT window_key(x.kind, x.time_zone, ledger_now()) AS key) AS w
    LEFT JOIN buckets b ON b.budget_id = x.id AND b.window_key = w.key
"""


class BudgetStore:
    """What operators set, and the balances of the windows that are open now."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_budget(self, change: Change, wish: BudgetWish) -> tuple[Budget | None, Budget]:
        """Creates or changes the account's budget of this name, and opens a closed one again. The
        answer is what was (None: it is new) and what is.

        A limit below what is spent stops admission, nothing else. A new budget counts from now on.

        Raises:
            NotFound: the account.
            InvalidRequest: TIME_ZONE_UNKNOWN, WINDOW_MISSING.
            FailedPrecondition: BUDGET_UNIT_FIXED, BUDGET_WINDOW_FIXED, BUDGETS_TOO_MANY.
        """
        async with changing(self._database, change) as writing:
            connection = writing.connection
            await writing.lock_account(wish.account_kind, wish.account_id)
            row = await connection.fetchrow(
                # Locked: it may be closed just now, and the entry says what it was before.
                _BUDGETS + "WHERE x.account_id = $1 AND x.name = $2 FOR NO KEY UPDATE OF x",
                wish.account_id,
                wish.name,
            )
            before = None if row is None else _budget(row)
            if before is None or before.closed:
                await _check_room(connection, wish)
            if before is not None:
                _check_fixed(before, wish)
            if wish.time_zone is not None:
                await _check_time_zone(connection, wish.time_zone)
            after = await _write(connection, before, wish)
            await _record(writing, "set", before, after)
        return before, after

    async def close_budget(self, change: Change, budget_id: int, *, money: bool) -> Budget:
        """It limits nothing any more; again is no fault. Raises NotFound (BUDGET_UNKNOWN,
        LIMIT_UNKNOWN).
        """
        async with changing(self._database, change) as writing:
            connection = writing.connection
            row = await connection.fetchrow(
                _BUDGETS + "WHERE x.id = $1 AND (x.unit = 'nano_usd') = $2 FOR NO KEY UPDATE OF x",
                budget_id,
                money,
            )
            if row is None:
                what = "budget" if money else "limit"
                raise errors.NotFound(
                    f"{what}_{budget_id} does not exist", reason=f"{what.upper()}_UNKNOWN"
                )
            await connection.execute(
                "UPDATE budgets SET closed_at = coalesce(closed_at, ledger_now()) WHERE id = $1",
                budget_id,
            )
            after = await _by_id(connection, budget_id)
            await _record(writing, "close", _budget(row), after)
        return after

    async def list_budgets(
        self, account: tuple[AccountKind, int] | None, *, money: bool
    ) -> list[Budget]:
        """Budgets of money, or the others; closed ones too. Raises NotFound: the account."""
        async with self._database.connection() as connection:
            if account is not None:
                await require_account(connection, *account)
            rows = await connection.fetch(
                _BUDGETS + "WHERE ($1::bigint IS NULL OR x.account_id = $1)"
                " AND (x.unit = 'nano_usd') = $2"
                " ORDER BY a.kind, x.account_id, x.unit, x.kind, x.name",
                None if account is None else account[1],
                money,
            )
        return [_budget(row) for row in rows]


def _check_fixed(before: Budget, wish: BudgetWish) -> None:
    if before.unit != wish.unit:
        raise errors.FailedPrecondition(
            f"{wish.name!r} of {format_id(wish.account_kind, wish.account_id)} counts"
            f" {before.unit}, which cannot be changed to {wish.unit}; take another name",
            reason="BUDGET_UNIT_FIXED",
        )
    if wish.window not in {None, before.window}:
        raise errors.FailedPrecondition(
            f"{wish.name!r} of {format_id(wish.account_kind, wish.account_id)} has the window"
            f" {before.window}, which cannot be changed to {wish.window}; take another name",
            reason="BUDGET_WINDOW_FIXED",
            metadata={"budget_id": format_budget_id(before.id), "window": before.window},
        )


async def _check_room(connection: postgres.Connection, wish: BudgetWish) -> None:
    count = await connection.fetchval(
        "SELECT count(*) FROM budgets WHERE account_id = $1 AND closed_at IS NULL", wish.account_id
    )
    if count >= BUDGETS_MAX:
        raise errors.FailedPrecondition(
            f"{format_id(wish.account_kind, wish.account_id)} has {count} open budgets and limits,"
            f" at most {BUDGETS_MAX} are allowed; close one",
            reason="BUDGETS_TOO_MANY",
        )


async def _check_time_zone(connection: postgres.Connection, time_zone: str) -> None:
    if not await connection.fetchval("SELECT 1 FROM pg_timezone_names WHERE name = $1", time_zone):
        raise errors.InvalidRequest.of(
            [
                errors.FieldViolation(
                    "time_zone",
                    f"{time_zone!r} is no IANA time zone, e.g. Europe/Berlin or UTC",
                )
            ],
            reason="TIME_ZONE_UNKNOWN",
        )


async def _write(
    connection: postgres.Connection, before: Budget | None, wish: BudgetWish
) -> Budget:
    if before is None:
        if wish.window is None:
            raise errors.InvalidRequest.of(
                [errors.FieldViolation("window", "a new budget takes one of minute to total")],
                reason="WINDOW_MISSING",
            )
        budget_id = await connection.fetchval(
            "INSERT INTO budgets (account_id, name, unit, kind, time_zone, limit_amount, providers,"
            " models, tags, soft_percents, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, ledger_now()) RETURNING id",
            wish.account_id,
            wish.name,
            wish.unit,
            wish.window,
            wish.time_zone or "UTC",
            wish.limit,
            *scope_columns(wish.scope or EVERYTHING),
            wish.soft_percents,
        )
    else:
        budget_id = before.id
        await connection.execute(
            "UPDATE budgets SET time_zone = $2, limit_amount = $3, providers = $4, models = $5,"
            " tags = $6, soft_percents = $7, closed_at = NULL WHERE id = $1",
            budget_id,
            wish.time_zone or before.time_zone,
            wish.limit,
            *scope_columns(before.scope if wish.scope is None else wish.scope),
            wish.soft_percents,
        )
    return await _by_id(connection, budget_id)


async def _record(writing: Writing, verb: str, before: Budget | None, after: Budget) -> None:
    unit: BudgetUnit = after.unit
    what = f"{verb}_budget" if unit == "nano_usd" else f"{verb}_rate_limit"
    was = None if before is None else before.settings()
    await writing.configure(after.account_id, what, was, after.settings())
    if unit == "requests" and (before is None or before.closed != after.closed):
        # Principal.counts_requests may have changed.
        await notify_keys(writing, after.account_id)


async def _by_id(connection: postgres.Connection, budget_id: int) -> Budget:
    return _budget(await connection.fetchrow(_BUDGETS + "WHERE x.id = $1", budget_id))


def scope_columns(scope: Scope) -> tuple[list[str], list[str], str]:
    """`providers`, `models` and `tags` as the tables keep them."""
    return (
        [glob_to_like(glob) for glob in scope.providers],
        [glob_to_like(glob) for glob in scope.models],
        json.dumps(dict(scope.tags)),
    )


def scope_of(row: Any) -> Scope:
    """From those columns."""
    return Scope(
        providers=_globs(row["providers"]),
        models=_globs(row["models"]),
        tags=json.loads(row["tags"]),
    )


def _globs(patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(like_to_glob(pattern) for pattern in patterns)


def _budget(row: Any) -> Budget:
    return Budget(
        id=row["id"],
        account_kind=row["account_kind"],
        account_id=row["account_id"],
        unit=row["unit"],
        window=row["window"],
        name=row["name"],
        time_zone=row["time_zone"],
        limit=row["limit_amount"],
        scope=scope_of(row),
        soft_percents=tuple(row["soft_percents"]),
        closed=row["closed"],
        posted=row["posted"],
        held=row["held"],
        suspense=row["suspense"],
        resets_at=row["resets_at"],
    )
