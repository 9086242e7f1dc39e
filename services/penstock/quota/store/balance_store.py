"""What is left on a path, in one statement."""

from collections.abc import Sequence

import asyncpg

from penstock.quota.account import AccountKind
from penstock.quota.store.changes import unknown_account
from penstock.quota.store.database import Database

UNUSABLE_GRANTS_MAX = 100
"""As the contract has it: enough to find the one that somebody counted on."""

# A pool's credit is our account at a provider: whoever asks for the pool is told, no key's owner.
_BALANCE = """
    WITH asked AS MATERIALIZED (
        SELECT a.id, a.kind, n.at, ARRAY(
                SELECT l.id FROM accounts l
                WHERE l.id = a.id OR (a.kind = 'key' AND l.id IN (a.org_id, a.team_id))
            ) AS path,
            EXISTS (
                SELECT FROM accounts l
                WHERE l.id IN (a.id, a.org_id, a.team_id) AND l.commercial
            ) AS commercial
        FROM accounts a, (SELECT ledger_now() AS at) AS n
        WHERE a.id = $1 AND a.kind = $2::account_kind
    ),
    credit AS (
        SELECT g.*, l.kind AS account_kind, b.posted, b.held, b.suspense, b.lapsed,
            CASE
                WHEN b.posted >= g.amount THEN 'used_up'
                WHEN g.expires_at <= a.at THEN 'ended'
                WHEN g.starts_at > a.at THEN 'not_started'
                WHEN a.commercial AND a.kind <> 'pool' AND NOT g.commercial_use
                    THEN 'non_commercial'
                WHEN b.posted + b.lapsed >= g.amount THEN 'used_up'
                ELSE 'usable'
            END AS state
        FROM asked a
        JOIN accounts l ON l.id = ANY (a.path)
        JOIN grants g ON g.account_id = l.id
        JOIN buckets b ON b.grant_id = g.id
    )
    SELECT 'account' AS what, a.id, '' AS name, a.kind AS account_kind, a.id AS account_id,
        NULL AS unit, NULL AS "window", NULL::bigint AS limit_amount, 0 AS posted, 0 AS held,
        0 AS suspense, 0 AS lapsed, a.at AS starts_at, NULL::timestamptz AS ends_at,
        NULL::smallint[] AS soft_percents, NULL AS state, NULL::text[] AS providers,
        NULL::text[] AS models, NULL::jsonb AS tags, NULL::boolean AS commercial_use, 0 AS turn
    FROM asked a
    UNION ALL
    SELECT 'budget', x.id, x.name, l.kind, l.id, x.unit::text, x.kind::text, x.limit_amount,
        coalesce(b.posted, 0), coalesce(b.held, 0), coalesce(b.suspense, 0), 0, NULL,
        window_end(x.kind, x.time_zone, w.key), x.soft_percents, NULL, x.providers,
        x.models, x.tags, NULL,
        row_number() OVER (ORDER BY l.kind, x.unit, x.kind, x.id)
    FROM asked a
    JOIN accounts l ON l.id = ANY (a.path)
    JOIN budgets x ON x.account_id = l.id AND x.closed_at IS NULL
    CROSS JOIN LATERAL (SELECT window_key(x.kind, x.time_zone, a.at) AS key) AS w
    LEFT JOIN buckets b ON b.budget_id = x.id AND b.window_key = w.key
    UNION ALL
    SELECT 'grant', g.id, g.name, g.account_kind, g.account_id, NULL, NULL, g.amount, g.posted,
        g.held, g.suspense, g.lapsed, g.starts_at, nullif(g.expires_at, 'infinity'), NULL, g.state,
        g.providers, g.models, g.tags, g.commercial_use,
        row_number() OVER (ORDER BY g.expires_at, g.id)
    FROM credit g WHERE g.state = 'usable'
    UNION ALL
    (SELECT 'unusable', g.id, g.name, g.account_kind, g.account_id, NULL, NULL, g.amount, g.posted,
        g.held, g.suspense, g.lapsed, g.starts_at, nullif(g.expires_at, 'infinity'), NULL, g.state,
        g.providers, g.models, g.tags, g.commercial_use,
        row_number() OVER (ORDER BY g.expires_at DESC, g.id DESC) AS turn
    FROM credit g WHERE g.state <> 'usable' ORDER BY turn LIMIT $3)
    ORDER BY what, turn
"""


class BalanceStore:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def balance(self, kind: AccountKind, account_id: int) -> Sequence[asyncpg.Record]:
        """One row of `what` = account, whose `starts_at` is the time; then budgets and limits that
        are open, and grants that are usable, each in the order in which they are used; then grants
        that are not usable (`what` = unusable), each with its `state`.

        Raises NotFound (<KIND>_UNKNOWN).
        """
        async with self._database.connection() as connection:
            rows: Sequence[asyncpg.Record] = await connection.fetch(
                _BALANCE, account_id, kind, UNUSABLE_GRANTS_MAX
            )
        if not rows:
            raise unknown_account(kind, account_id)
        return rows
