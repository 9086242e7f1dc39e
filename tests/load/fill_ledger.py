"""Fills a ledger with accounts and entries that balance, in SQL: a million entries in a minute.

    .venv/bin/python -m tests.load.fill_ledger --accounts 100000 --entries 1000000

into the migrated database of PENSTOCK_QUOTA_DSN. What it makes passes the audit; it may be run
again, and adds as much.
"""

import argparse
import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

KEYS_PER_TEAM = 100
TEAMS_PER_ORG = 10
LIMIT_NANO_USD = 10**15
"""Of each budget; no history of a fill comes near it."""
CHUNK_RESERVATIONS = 50_000
SPAN_DAYS = 6
"""The history ends now; its ids are all within the horizon of 7 days."""
VOID_EACH = 1_000
"""So many reservations to one that is voided; the others are settled."""

Told = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Filled:
    """What was made: `keys` ids from `first_key_id` on, and so on. Each organisation, team and key
    has one budget in USD, `total`, all with the same limit.

    The text of key `id` is `ps-fill-<id>`.
    """

    first_org_id: int
    orgs: int
    teams: int
    first_key_id: int
    keys: int
    entries: int
    posted_nano_usd: int


_ACCOUNTS = """
    INSERT INTO accounts (id, kind, name, org_id, team_id, created_at) OVERRIDING SYSTEM VALUE
    SELECT id, kind::account_kind, format('fill-%s', id), org_id, team_id, ledger_now()
    FROM (
        SELECT $1::bigint + n AS id, 'org' AS kind, NULL::bigint AS org_id, NULL::bigint AS team_id
        FROM generate_series(0, $2::bigint - 1) AS n
        UNION ALL
        SELECT $1 + $2 + n, 'team', $1 + n / $5::bigint, NULL
        FROM generate_series(0, $3::bigint - 1) AS n
        UNION ALL
        SELECT $1 + $2 + $3 + n, 'key', $1 + n / ($5 * $6::bigint), $1 + $2 + n / $6
        FROM generate_series(0, $4::bigint - 1) AS n
    ) AS a ORDER BY id
"""
_KEYS = """
    INSERT INTO api_keys (account_id, allowed_models, local_only, fail_open_local)
    SELECT n, '{}', false, false FROM generate_series($1::bigint, $2::bigint) AS n
"""
_SECRETS = """
    INSERT INTO key_secrets (hash, account_id, prefix, created_at)
    SELECT sha256(format('ps-fill-%s', n)::bytea), n, 'ps-fill', ledger_now()
    FROM generate_series($1::bigint, $2::bigint) AS n
"""
_BUDGETS = """
    WITH made AS (
        INSERT INTO budgets (account_id, name, unit, kind, time_zone, limit_amount, created_at)
        SELECT n, 'total', 'nano_usd', 'total', 'UTC', $3::bigint, ledger_now()
        FROM generate_series($1::bigint, $2::bigint) AS n ORDER BY n
        RETURNING id
    )
    INSERT INTO buckets (budget_id, unit) SELECT id, 'nano_usd' FROM made ORDER BY id
"""
# One row a reservation: $1: the first, $2: how many, $3: how many in all, $4: first key, $5: keys.
# Keys come in an order that is mixed and the same each time.
_PLAN = """
    CREATE TEMP TABLE fill_plan AS
    SELECT n,
        (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7'
            || lpad(to_hex(n % 4096), 3, '0') || '8' || lpad(to_hex(n / 4096), 7, '0')
            || $6::text)::uuid AS id,
        at, k.id AS key_id, k.org_id, ARRAY[o.id, t.id, b.id] AS bucket_ids,
        1000 + n * 7919 % 9000 AS amount,
        CASE WHEN n % $7::bigint = 0 THEN 0
            ELSE (1000 + n * 7919 % 9000) * (1 + n % 10) / 10 END AS posted,
        n % $7 = 0 AS void
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n
    CROSS JOIN LATERAL (SELECT ledger_now() - interval '1 day' * $8::integer
        * (1 - n::double precision / $3::bigint) AS at) AS time
    JOIN accounts k ON k.id = $4::bigint + n * 2654435761 % $5::bigint
    JOIN budgets xk ON xk.account_id = k.id JOIN buckets b ON b.budget_id = xk.id
    JOIN budgets xt ON xt.account_id = k.team_id JOIN buckets t ON t.budget_id = xt.id
    JOIN budgets xo ON xo.account_id = k.org_id JOIN buckets o ON o.budget_id = xo.id
"""
_RESERVATIONS = """
    INSERT INTO reservations (id, state, created_at, epoch, org_id, key_id, request_id, attempt,
        pool, provider, model, asked, asked_tokens, ttl_ms, end_user, tags, amount, tokens,
        bucket_ids, expires_at, resolved_at, posted, released, prompt_tokens, cached_prompt_tokens,
        completion_tokens, reasoning_tokens, outcome, trace_id)
    SELECT id, CASE WHEN void THEN 'voided' ELSE 'settled' END::reservation_state, at,
        $1::integer, org_id, key_id, 'req_' || left(id::text, 18), 1, 'paid', 'openai',
        'gpt-4o-mini', amount, 100, 60000, '', '{}', amount, 100, bucket_ids,
        at + interval '1 minute', at + interval '1 second', posted, amount - posted, 50, 0, 50, 0,
        CASE WHEN void THEN 'CANCELLED' ELSE 'ok' END, ''
    FROM fill_plan ORDER BY n
"""
_ENTRIES = """
    INSERT INTO entries (epoch, at, operation, reservation_id, account_id, bucket_ids, available,
        held, suspense, posted)
    SELECT $1::integer, p.at + e.after, e.operation::entry_operation, p.id, p.key_id, p.bucket_ids,
        -(e.held + e.posted), e.held, 0, e.posted
    FROM fill_plan p, LATERAL (VALUES
        (interval '0', 'reserve', amount, 0::bigint),
        (interval '1 second', CASE WHEN void THEN 'void' ELSE 'settle' END, -amount, posted)
    ) AS e (after, operation, held, posted)
    ORDER BY p.n, e.after
"""
# As the ledger itself tells of accounts and budgets; $1, $2: the first and the last account.
_SETTINGS = """
    INSERT INTO entries (epoch, at, operation, account_id, bucket_ids, actor, reason, detail)
    SELECT current_epoch(), ledger_now(), 'configure', account_id, '{}', 'fill', '',
        jsonb_build_object('what', what, 'before', NULL, 'after', after)
    FROM (
        SELECT id AS account_id, 1 AS turn, 'create_account' AS what, jsonb_build_object('id', id,
            'kind', kind, 'name', name, 'org_id', org_id, 'suspended', false, 'prepaid', false,
            'commercial', false) AS after
        FROM accounts WHERE kind IN ('org', 'team')
        UNION ALL
        SELECT id, 1, 'create_key', jsonb_build_object('id', id, 'org_id', org_id,
            'team_id', team_id, 'name', name, 'state', 'active', 'policy', jsonb_build_object(
            'allowed_models', jsonb_build_array(), 'local_only', false, 'fail_open_local', false,
            'expires_at', NULL))
        FROM accounts WHERE kind = 'key'
        UNION ALL
        SELECT account_id, 2, 'set_budget', jsonb_build_object('id', id, 'name', name, 'unit', unit,
            'window', kind, 'time_zone', time_zone, 'limit', limit_amount, 'scope',
            jsonb_build_object('providers', providers, 'models', models, 'tags', tags),
            'soft_percents', soft_percents, 'closed', false)
        FROM budgets
    ) AS s
    WHERE account_id BETWEEN $1 AND $2 ORDER BY turn, account_id
"""
_BALANCES = """
    UPDATE buckets b SET posted = b.posted + f.posted
    FROM (SELECT unnest(bucket_ids) AS id, sum(posted) AS posted FROM fill_plan GROUP BY 1) AS f
    WHERE b.id = f.id
"""


def quiet(stage: str, done: int, total: int) -> None:
    """For who does not watch."""


async def fill(
    dsn: str, *, accounts: int = 100_000, entries: int = 1_000_000, progress: Told = quiet
) -> Filled:
    """Adds `accounts` keys, with their teams and organisations, and `entries` entries (even) of
    money; one more tells of each account, and one of each budget.

    Each chunk is one transaction that balances. `progress` hears a stage, done, total.
    """
    assert accounts > 0, accounts
    assert entries % 2 == 0, entries
    connection = await asyncpg.connect(dsn, server_settings={"synchronous_commit": "off"})
    try:
        first = await _make_accounts(connection, accounts, progress)
        posted = await _make_entries(connection, first, accounts, entries // 2, progress)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()
    teams, orgs = _levels(accounts)
    return Filled(
        first_org_id=first - teams - orgs,
        orgs=orgs,
        teams=teams,
        first_key_id=first,
        keys=accounts,
        entries=entries,
        posted_nano_usd=posted,
    )


def _levels(accounts: int) -> tuple[int, int]:
    teams = -(-accounts // KEYS_PER_TEAM)
    return teams, -(-teams // TEAMS_PER_ORG)


async def _make_accounts(connection: asyncpg.Connection, keys: int, progress: Told) -> int:
    """The id of the first key; teams lie right before the keys, organisations before the teams."""
    teams, orgs = _levels(keys)
    async with connection.transaction():
        await connection.execute("LOCK TABLE accounts IN SHARE ROW EXCLUSIVE MODE")
        first = 1 + await connection.fetchval("SELECT coalesce(max(id), 0) FROM accounts")
        sizes = (TEAMS_PER_ORG, KEYS_PER_TEAM)
        await connection.execute(_ACCOUNTS, first, orgs, teams, keys, *sizes)
        first_key, last = first + orgs + teams, first + orgs + teams + keys - 1
        await connection.execute("SELECT setval('accounts_id_seq', $1)", last)
        progress("accounts", 1, 3)
        await connection.execute(_KEYS, first_key, last)
        await connection.execute(_SECRETS, first_key, last)
        progress("accounts", 2, 3)
        await connection.execute(_BUDGETS, first, last, LIMIT_NANO_USD)
        await connection.execute(_SETTINGS, first, last)
    await connection.execute("ANALYZE accounts, budgets, buckets")
    progress("accounts", 3, 3)
    return first_key


async def _make_entries(
    connection: asyncpg.Connection, first_key: int, keys: int, reservations: int, progress: Told
) -> int:
    posted = 0
    # Ids of two fills differ in their ends.
    end = f"{first_key:08x}"
    for start in range(0, reservations, CHUNK_RESERVATIONS):
        count = min(CHUNK_RESERVATIONS, reservations - start)
        async with connection.transaction():
            epoch = await connection.fetchval("SELECT current_epoch()")
            plan = (start, count, reservations, first_key, keys, end, VOID_EACH, SPAN_DAYS)
            await connection.execute(_PLAN, *plan)
            await connection.execute("ANALYZE fill_plan")
            await connection.execute(_RESERVATIONS, epoch)
            await connection.execute(_ENTRIES, epoch)
            await connection.execute(_BALANCES)
            posted += await connection.fetchval("SELECT sum(posted)::bigint FROM fill_plan")
            await connection.execute("DROP TABLE fill_plan")
        progress("entries", 2 * (start + count), 2 * reservations)
    return posted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--entries", type=int, default=1_000_000, help="e.g. 10000000")
    options = parser.parse_args()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn()) as bars:
        tasks = {stage: bars.add_task(stage) for stage in ("accounts", "entries")}

        def told(stage: str, done: int, total: int) -> None:
            bars.update(tasks[stage], completed=done, total=total)

        dsn = os.environ["PENSTOCK_QUOTA_DSN"]
        made = asyncio.run(
            fill(dsn, accounts=options.accounts, entries=options.entries, progress=told)
        )
    print(made)  # noqa: T201 - for who typed it


if __name__ == "__main__":
    main()
