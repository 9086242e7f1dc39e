"""Random worlds for histories: what the auditor knows, put into a real database in bulk.

Thousands of them are made at once, so that histories can run in lockstep in one database.
"""

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from penstock.quota.budget import glob_to_like
from support.audited import (
    FOREVER,
    AccountModel,
    BudgetModel,
    GrantModel,
    ScopeModel,
    WorldModel,
)
from support.auditor import Auditor
from support.configured import enter_settings

ZONES = ("UTC", "America/Havana", "Asia/Tokyo", "Europe/Berlin")
MODELS = ("small-mini", "large")
TAGS: tuple[dict[str, str], ...] = ({}, {"project": "x"})
OTHER_PROVIDER = "elsewhere"
"""Of no pool."""
NARROW = (ScopeModel(models=("*-mini",)), ScopeModel(tags={"project": "x"}))

ACCOUNTS_A_WORLD = 8


async def new_ids(connection: asyncpg.Connection, table: str, count: int) -> list[int]:
    rows = await connection.fetch(
        "SELECT nextval(pg_get_serial_sequence($1, 'id')) FROM generate_series(1, $2)", table, count
    )
    return [row[0] for row in rows]


def make_world(rng: random.Random, ids: Sequence[int], now: datetime) -> WorldModel:
    """Two organisations (the second has one key) that share a pool of two providers."""
    pool, org, team, key, other_key, org2, team2, key2 = ids
    world = WorldModel()
    world.accounts = {
        pool: AccountModel("pool", prepaid=rng.random() < 0.3),
        org: AccountModel("org", commercial=rng.random() < 0.3),
        team: AccountModel("team", org, prepaid=rng.random() < 0.2),
        key: AccountModel("key", org, team),
        other_key: AccountModel("key", org, team),
        org2: AccountModel("org", prepaid=rng.random() < 0.4),
        team2: AccountModel("team", org2),
        key2: AccountModel("key", org2, team2),
    }
    world.pools = {f"provider-{pool}-{n}": pool for n in (1, 2)}
    for account_id in ids:
        for _ in range(rng.choice([0, 1, 1, 2])):
            world.budgets.append(_money(rng, account_id))
        for _ in range(rng.choice([0, 0, 0, 1, 1])):
            world.budgets.append(_rate(rng, account_id))
        if rng.random() < 0.3 or world.accounts[account_id].prepaid:
            for _ in range(rng.choice([1, 2, 2])):
                world.grants.append(_grant(rng, account_id, now))
    # Without a budget of money there is little to see.
    world.budgets += [_money(rng, org2), BudgetModel(org, "nano_usd", "total", 400)]
    return world


def _money(rng: random.Random, account_id: int) -> BudgetModel:
    window = rng.choice(["minute", "hour", "day", "week", "month", "total", "total"])
    limit = rng.choice([None, 0, 60, 150, 300, 300, 600])
    return BudgetModel(account_id, "nano_usd", window, limit, rng.choice(ZONES), _scope(rng))


def _rate(rng: random.Random, account_id: int) -> BudgetModel:
    unit = rng.choice(["requests", "tokens", "in_flight"])
    window = "total" if unit == "in_flight" else rng.choice(["minute", "day"])
    limit = {"requests": 4, "tokens": 300, "in_flight": 3}[unit]
    return BudgetModel(account_id, unit, window, limit, rng.choice(ZONES), _scope(rng))


def _grant(rng: random.Random, account_id: int, now: datetime) -> GrantModel:
    days = rng.choice([1, 3, 30, None])
    return GrantModel(
        account_id,
        rng.choice([40, 100, 250]),
        now + timedelta(seconds=rng.choice([0, 0, 0, 90, 7200])),
        FOREVER if days is None else now + timedelta(days=days),
        _scope(rng),
        commercial_use=rng.random() < 0.7,
    )


def _scope(rng: random.Random) -> ScopeModel:
    return rng.choice(NARROW) if rng.random() < 0.2 else ScopeModel()


async def install(
    connection: asyncpg.Connection, worlds: Sequence[WorldModel], now: datetime
) -> None:
    """Writes them, and gives budgets and grants their ids."""
    budgets = [budget for world in worlds for budget in world.budgets]
    for budget, id_ in zip(
        budgets, await new_ids(connection, "budgets", len(budgets)), strict=True
    ):
        budget.id = id_
    grants = [grant for world in worlds for grant in world.grants]
    for grant, id_ in zip(grants, await new_ids(connection, "grants", len(grants)), strict=True):
        grant.id = id_
    async with connection.transaction():
        await _install_accounts(connection, worlds, now)
        await connection.executemany(
            "INSERT INTO budgets (id, account_id, name, unit, kind, time_zone, limit_amount,"
            " providers, models, tags, created_at) OVERRIDING SYSTEM VALUE"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            [
                (
                    *(b.id, b.account_id, f"b-{b.id}", b.unit, b.window, b.zone, b.limit),
                    *(*_columns(b.scope), now),
                )
                for b in budgets
            ],
        )
        await connection.executemany(
            "INSERT INTO grants (id, grant_key, account_id, name, reason, amount, starts_at,"
            " expires_at, providers, models, tags, commercial_use, created_at) OVERRIDING SYSTEM"
            " VALUE VALUES ($1, $2, $3, 'credit', 'a proof', $4, $5, $6, $7, $8, $9, $10, $11)",
            [
                (
                    *(g.id, f"g-{g.id}", g.account_id, g.amount, g.starts_at, g.ends_at),
                    *(*_columns(g.scope), g.commercial_use, now),
                )
                for g in grants
            ],
        )
        await connection.execute(
            "INSERT INTO buckets (grant_id, unit) SELECT id, 'nano_usd' FROM unnest($1::bigint[])"
            " AS u (id)",
            [grant.id for grant in grants],
        )
        await enter_settings(connection, [i for world in worlds for i in world.accounts])


async def _install_accounts(
    connection: asyncpg.Connection, worlds: Sequence[WorldModel], now: datetime
) -> None:
    accounts = [item for world in worlds for item in world.accounts.items()]
    for kinds in (("pool", "org"), ("team",), ("key",)):
        rows = [(i, a, now) for i, a in accounts if a.kind in kinds]
        await connection.executemany(
            "INSERT INTO accounts (id, kind, name, org_id, team_id, prepaid, commercial,"
            " created_at) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            [
                (i, a.kind, f"w-{i}", a.org_id, a.team_id, a.prepaid, a.commercial, at)
                for i, a, at in rows
            ],
        )
    await connection.executemany(
        "INSERT INTO api_keys (account_id, allowed_models, local_only, fail_open_local)"
        " VALUES ($1, '{}', false, false)",
        [(i,) for i, a in accounts if a.kind == "key"],
    )
    await connection.executemany(
        "INSERT INTO pool_providers VALUES ($1, $2)",
        [item for world in worlds for item in world.pools.items()],
    )


def _columns(scope: ScopeModel) -> tuple[list[str], list[str], str]:
    return (
        [glob_to_like(glob) for glob in scope.providers],
        [glob_to_like(glob) for glob in scope.models],
        msgspec.json.encode(scope.tags).decode(),
    )


_BALANCES = """
    SELECT coalesce(b.budget_id, -b.grant_id) AS place, nullif(b.window_key, '-infinity') AS began,
        b.posted, b.held, b.suspense, b.lapsed
    FROM buckets b WHERE b.budget_id = ANY ($1) OR b.grant_id = ANY ($2)
"""
_FOLDS = """
    SELECT coalesce(b.budget_id, -b.grant_id) AS place, nullif(b.window_key, '-infinity') AS began,
        f.posted::bigint, f.held::bigint, f.suspense::bigint, f.lapsed::bigint
    FROM buckets b JOIN (
        SELECT u.id, sum(e.posted) AS posted, sum(e.held) AS held, sum(e.suspense) AS suspense,
            0 AS lapsed
        FROM entries e, unnest(e.bucket_ids) AS u (id) GROUP BY 1
        UNION ALL
        SELECT u.id, sum(u.posted), sum(u.held), sum(u.suspense), sum(coalesce(u.lapsed, 0))
        FROM entries e, unnest(e.slice_ids, e.slice_posted, e.slice_held, e.slice_suspense,
            e.slice_lapsed) AS u (id, posted, held, suspense, lapsed) GROUP BY 1
    ) AS f ON f.id = b.id
    WHERE b.unit = 'nano_usd' AND (b.budget_id = ANY ($1) OR b.grant_id = ANY ($2))
"""
Book = dict[tuple[int, Any], tuple[int, ...]]
"""Posted, held, suspense, lapsed; by budget (grant: negative) and the beginning of its window."""
_NOTHING = (0, 0, 0, 0)


async def books(
    connection: asyncpg.Connection, worlds: Sequence[WorldModel], query: str
) -> list[Book]:
    """Of each world; buckets without a movement are left out."""
    owners: dict[int, int] = {}
    for n, world in enumerate(worlds):
        owners |= {budget.id: n for budget in world.budgets}
        owners |= {-grant.id: n for grant in world.grants}
    found: list[Book] = [{} for _ in worlds]
    rows = await connection.fetch(
        query, [i for i in owners if i > 0], [-i for i in owners if i < 0]
    )
    for place, began, *amounts in rows:
        if tuple(amounts) != _NOTHING:
            found[owners[place]][place, began] = tuple(amounts)
    return found


async def balances(connection: asyncpg.Connection, worlds: Sequence[WorldModel]) -> list[Book]:
    """As the database has them."""
    return await books(connection, worlds, _BALANCES)


async def folds(connection: asyncpg.Connection, worlds: Sequence[WorldModel]) -> list[Book]:
    """Of the money, as the entries say."""
    return await books(connection, worlds, _FOLDS)


def difference(expected: Book, got: Book) -> str:
    """In words; empty: they agree."""
    places = [p for p in expected.keys() | got.keys() if expected.get(p) != got.get(p)]
    return "; ".join(f"{p}: {expected.get(p)} and not {got.get(p)}" for p in places)


def expected(auditor: Auditor, *, money_only: bool = False) -> Book:
    units = {b.id: b.unit for b in auditor.world.budgets}
    book: Book = {}
    for place, balance in auditor.balances.items():
        if not money_only or units[place[0]] == "nano_usd":
            book[place] = (balance.posted, balance.held, balance.suspense, 0)
    for grant in auditor.world.grants:
        book[-grant.id, None] = (grant.posted, grant.held, grant.suspense, grant.lapsed)
    return {place: amounts for place, amounts in book.items() if amounts != _NOTHING}
