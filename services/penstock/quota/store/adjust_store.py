"""Adjustments: an operator posts an amount, or gives one back, once."""

from dataclasses import dataclass
from typing import Any

import asyncpg

from penstock.core import errors, postgres
from penstock.core.money import format_usd
from penstock.quota.account import AccountKind, format_id
from penstock.quota.budget import Scope
from penstock.quota.store.budget_store import scope_of
from penstock.quota.store.changes import Change, Writing, changing, require_account
from penstock.quota.store.database import Database, busy
from penstock.quota.store.entry_store import entry_by_id
from penstock.quota.store.reused import reused

LOOKS_MAX = 20
"""At where a reservation lies: an extension puts it into more, but soon there is no more."""

# As apply_batch does: a threshold that was passed is told of once.
_WARN = """
    INSERT INTO alerts (alert_key, kind, at, account_id, detail)
    SELECT format('threshold:%s:%s', b.id, per_cent), 'budget_threshold', ledger_now(),
        x.account_id, jsonb_build_object(
            'budget_id', x.id, 'budget_name', x.name, 'window', x.kind, 'percent', per_cent,
            'limit_nano_usd', x.limit_amount, 'spent_nano_usd', s.spent, 'resets_at_ms',
            (extract(epoch FROM window_end(x.kind, x.time_zone, b.window_key)) * 1000)::bigint)
    FROM unnest($1::bigint[], $2::bigint[]) AS u (id, amount)
    JOIN buckets b ON b.id = u.id
    JOIN budgets x ON x.id = b.budget_id
    CROSS JOIN unnest(x.soft_percents, x.soft_amounts) AS t (per_cent, soft)
    CROSS JOIN LATERAL (SELECT b.posted + b.suspense AS spent) AS s
    WHERE s.spent >= t.soft AND s.spent - u.amount < t.soft
    ON CONFLICT DO NOTHING
"""

_POSTED_ON = """
    SELECT b.budget_id IS NOT NULL AS is_budget, coalesce(x.id, g.id) AS id,
        coalesce(x.name, g.name) AS name, a.kind AS account_kind, a.id AS account_id,
        coalesce(x.providers, g.providers) AS providers, coalesce(x.models, g.models) AS models,
        coalesce(x.tags, g.tags) AS tags, u.amount
    FROM entries e
    CROSS JOIN LATERAL (
        SELECT id, e.posted AS amount FROM unnest(e.bucket_ids) AS s (id)
        UNION ALL
        SELECT id, amount FROM unnest(e.slice_ids, e.slice_posted) AS s (id, amount)
        WHERE amount <> 0) AS u
    JOIN buckets b ON b.id = u.id
    LEFT JOIN budgets x ON x.id = b.budget_id
    LEFT JOIN grants g ON g.id = b.grant_id
    JOIN accounts a ON a.id = coalesce(x.account_id, g.account_id)
    WHERE e.id = $1
    ORDER BY b.grant_id IS NOT NULL, a.kind, b.id
"""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Exactly one of `account` and `reservation_id` is given; the amount is never 0."""

    adjustment_key: str
    account: tuple[AccountKind, int] | None
    reservation_id: str | None
    amount_nano_usd: int


@dataclass(frozen=True, slots=True)
class PostedOn:
    """A budget or a grant that an adjustment moved, as it is called now, and by how much."""

    is_budget: bool
    id: int
    name: str
    account_kind: AccountKind
    account_id: int
    scope: Scope
    amount_nano_usd: int


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The entry as EntryStore reads it, what it is posted on (budgets first, from the organisation
    on), and whether it was there before: this is a repeat.
    """

    entry: asyncpg.Record
    posted_on: list[PostedOn]
    is_repeat: bool


@dataclass(frozen=True, slots=True)
class _Slices:
    ids: list[int]
    posted: list[int]


class AdjustStore:
    """Each adjustment is one entry and moves all of its buckets, or none."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def adjust(self, change: Change, wanted: Adjustment) -> Adjusted:
        """Makes it, or finds what was made by its key.

        Raises:
            NotFound: the account, RESERVATION_UNKNOWN, or (of a repeat) ENTRY_DETACHED.
            Conflict: ADJUSTMENT_KEY_REUSED.
            FailedPrecondition: ADJUSTMENT_BELOW_ZERO, BUDGET_MISSING, RESERVATION_HELD,
                RESERVATION_IN_SUSPENSE, RESERVATION_REFUSED, RESERVATION_VOIDED.
            Unavailable: LEDGER_BUSY, or it is away.
        """
        async with changing(self._database, change) as writing:
            connection = writing.connection
            await _check_target(connection, wanted)
            is_new = await connection.fetchval(
                "INSERT INTO adjustments (adjustment_key, account_id, reservation_id, amount)"
                " VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING true",
                wanted.adjustment_key,
                None if wanted.account is None else wanted.account[1],
                wanted.reservation_id,
                wanted.amount_nano_usd,
            )
            if not is_new:
                return await _repeated(connection, wanted)
            if wanted.account is not None:
                entry_id = await _adjust_account(writing, wanted.account, wanted.amount_nano_usd)
            else:
                assert wanted.reservation_id is not None
                entry_id = await _adjust_reservation(
                    writing, wanted.reservation_id, wanted.amount_nano_usd
                )
            await connection.execute(
                "UPDATE adjustments SET entry_id = $2 WHERE adjustment_key = $1",
                wanted.adjustment_key,
                entry_id,
            )
            row = await entry_by_id(connection, entry_id)
            assert row is not None
            posted_on = await _posted_on(connection, entry_id)
        return Adjusted(row, posted_on, is_repeat=False)


async def _check_target(connection: postgres.Connection, wanted: Adjustment) -> None:
    if wanted.account is not None:
        await require_account(connection, *wanted.account)
    elif not await connection.fetchval(
        "SELECT 1 FROM reservations WHERE id = $1", wanted.reservation_id
    ):
        raise errors.NotFound(
            f"reservation {wanted.reservation_id} does not exist", reason="RESERVATION_UNKNOWN"
        )


async def _repeated(connection: postgres.Connection, wanted: Adjustment) -> Adjusted:
    made = await connection.fetchrow(
        "SELECT x.entry_id, x.reservation_id, x.amount, a.kind, a.id AS account_id"
        " FROM adjustments x LEFT JOIN accounts a ON a.id = x.account_id"
        " WHERE x.adjustment_key = $1",
        wanted.adjustment_key,
    )
    account = None if made["kind"] is None else (made["kind"], made["account_id"])
    reservation_id = None if made["reservation_id"] is None else str(made["reservation_id"])
    was = Adjustment(wanted.adjustment_key, account, reservation_id, made["amount"])
    if was != wanted:
        raise reused("adjustment", wanted.adjustment_key, _fields(was), _fields(wanted))
    row = await entry_by_id(connection, made["entry_id"])
    if row is None:
        raise errors.NotFound(
            f"adjustment {wanted.adjustment_key!r} was made; its entry {made['entry_id']} lies in a"
            " partition that was detached",
            reason="ENTRY_DETACHED",
        )
    return Adjusted(row, await _posted_on(connection, row["id"]), is_repeat=True)


async def _posted_on(connection: postgres.Connection, entry_id: int) -> list[PostedOn]:
    return [
        PostedOn(
            is_budget=row["is_budget"],
            id=row["id"],
            name=row["name"],
            account_kind=row["account_kind"],
            account_id=row["account_id"],
            scope=scope_of(row),
            amount_nano_usd=row["amount"],
        )
        for row in await connection.fetch(_POSTED_ON, entry_id)
    ]


def _fields(of: Adjustment) -> dict[str, object]:
    """By the contract's names."""
    return {
        "account_id": "" if of.account is None else format_id(*of.account),
        "reservation_id": of.reservation_id or "",
        "amount_nano_usd": of.amount_nano_usd,
    }


async def _adjust_account(writing: Writing, account: tuple[AccountKind, int], amount: int) -> int:
    connection = writing.connection
    kind, account_id = account
    opened = await connection.fetch(
        "SELECT x.id, x.unit, window_key(x.kind, x.time_zone, n.at) AS key"
        " FROM (SELECT ledger_now() AS at) AS n, accounts a"
        " JOIN budgets x ON x.account_id IN (a.org_id, a.team_id, a.id)"
        " WHERE a.id = $1 AND x.unit = 'nano_usd' AND x.closed_at IS NULL ORDER BY x.id",
        account_id,
    )
    if not opened:
        raise errors.FailedPrecondition(
            f"{format_id(kind, account_id)} has no open budget, nor has a level above: set one, or"
            " set `unlimited`",
            reason="BUDGET_MISSING",
        )
    budgets, keys = [x["id"] for x in opened], [x["key"] for x in opened]
    await connection.execute(
        "INSERT INTO buckets (budget_id, unit, window_key)"
        " SELECT u.id, 'nano_usd', u.key FROM unnest($1::bigint[], $2::timestamp[]) AS u (id, key)"
        " ORDER BY 1 ON CONFLICT DO NOTHING",
        budgets,
        keys,
    )
    locked = await connection.fetch(
        "SELECT b.id, b.posted FROM buckets b"
        " JOIN unnest($1::bigint[], $2::timestamp[]) AS u (id, key)"
        " ON b.budget_id = u.id AND b.window_key = u.key ORDER BY b.id FOR NO KEY UPDATE OF b",
        budgets,
        keys,
    )
    _check_floor([row["posted"] for row in locked], [amount] * len(locked))
    bucket_ids = [row["id"] for row in locked]
    await _post(connection, bucket_ids, [amount] * len(bucket_ids))
    return await _enter(writing, account_id, None, bucket_ids, amount, None)


async def _adjust_reservation(writing: Writing, reservation_id: str, amount: int) -> int:
    connection = writing.connection
    reservation, locked = await _lock_reservation(connection, reservation_id)
    _check_state(reservation)
    was = reservation["posted"] + reservation["adjusted"]
    _check_floor([was], [amount])
    money = [row["id"] for row in locked if row["is_budget"] and row["unit"] == "nano_usd"]
    slices = None
    if reservation["slice_ids"]:
        moved = await connection.fetchval(
            "SELECT array_agg(b - a ORDER BY place)"
            " FROM unnest(slices_posted($1, $2, $3, $4), slices_posted($1, $2, $3, $5))"
            " WITH ORDINALITY AS u (a, b, place)",
            reservation["slice_amounts"],
            reservation["slice_sides"],
            reservation["amount"],
            was,
            was + amount,
        )
        slices = _Slices(reservation["slice_ids"], moved)
    ids = money + (slices.ids if slices else [])
    amounts = [amount] * len(money) + (slices.posted if slices else [])
    posted = {row["id"]: row["posted"] for row in locked}
    _check_floor([posted[id_] for id_ in ids], amounts)
    await _post(connection, ids, amounts)
    await connection.execute(
        "UPDATE reservations SET adjusted = adjusted + $2 WHERE id = $1", reservation_id, amount
    )
    return await _enter(writing, reservation["key_id"], reservation_id, money, amount, slices)


async def _lock_reservation(
    connection: postgres.Connection, reservation_id: str
) -> tuple[Any, list[asyncpg.Record]]:
    """The reservation, and everything that it lies in, locked: nobody else changes it then.

    Raises Unavailable (LEDGER_BUSY) where it lies in more at each of many looks.
    """
    held: list[asyncpg.Record] = []
    for _ in range(LOOKS_MAX):
        reservation = await connection.fetchrow(
            "SELECT *, bucket_ids || coalesce(slice_ids, '{}') AS lies_in FROM reservations"
            " WHERE id = $1",
            reservation_id,
        )
        if set(reservation["lies_in"]) <= {row["id"] for row in held}:
            return reservation, held
        held = await connection.fetch(
            "SELECT id, unit, posted, budget_id IS NOT NULL AS is_budget FROM buckets"
            " WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE",
            reservation["lies_in"],
        )
    raise busy(f"reservation {reservation_id}")


def _check_state(reservation: Any) -> None:
    state, id_ = reservation["state"], reservation["id"]
    if state == "held":
        raise errors.FailedPrecondition(
            f"reservation {id_} holds still; it is adjusted once it is settled",
            reason="RESERVATION_HELD",
        )
    if state == "expired" and reservation["pool"] == "paid":
        raise errors.FailedPrecondition(
            f"reservation {id_} is in suspense; resolve it instead",
            reason="RESERVATION_IN_SUSPENSE",
        )
    if state == "refused":
        raise errors.FailedPrecondition(
            f"reservation {id_} was refused: it lies in no budget", reason="RESERVATION_REFUSED"
        )
    if reservation["key_id"] is None:
        raise errors.FailedPrecondition(
            f"reservation {id_} was voided before it was made: it lies in no budget",
            reason="RESERVATION_VOIDED",
        )


def _check_floor(posted: list[int], amounts: list[int]) -> None:
    for was, amount in zip(posted, amounts, strict=True):
        if amount < 0 and was + amount < 0:
            raise errors.FailedPrecondition(
                f"{format_usd(-amount)} USD are to be given back, where {format_usd(was)} USD are"
                " posted; at most what was posted can be given back",
                reason="ADJUSTMENT_BELOW_ZERO",
                metadata={"posted_nano_usd": str(was)},
            )


async def _post(connection: postgres.Connection, ids: list[int], amounts: list[int]) -> None:
    await connection.execute(
        "UPDATE buckets b SET posted = b.posted + u.amount"
        " FROM unnest($1::bigint[], $2::bigint[]) AS u (id, amount) WHERE b.id = u.id",
        ids,
        amounts,
    )
    await connection.execute(_WARN, ids, amounts)


async def _enter(
    writing: Writing,
    account_id: int,
    reservation_id: str | None,
    bucket_ids: list[int],
    amount: int,
    slices: _Slices | None,
) -> int:
    zeros = None if slices is None else [0] * len(slices.ids)
    entry_id: int = await writing.connection.fetchval(
        "INSERT INTO entries (epoch, at, operation, reservation_id, account_id, bucket_ids,"
        " available, posted, slice_ids, slice_held, slice_suspense, slice_posted, actor, reason)"
        " VALUES ($1, ledger_now(), 'adjust', $2, $3, $4, $5, $6, $7, $8, $8, $9, $10, $11)"
        " RETURNING id",
        writing.epoch,
        reservation_id,
        account_id,
        bucket_ids,
        -amount,
        amount,
        None if slices is None else slices.ids,
        zeros,
        None if slices is None else slices.posted,
        writing.change.actor,
        writing.change.reason,
    )
    return entry_id
