"""What was spent, read from the entries."""
# ruff: noqa: S608 - of our own texts.

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from penstock.quota.account import AccountKind
from penstock.quota.store.changes import require_account
from penstock.quota.store.database import Database
from penstock.quota.store.detached import Detached, detached_entries

# Adjusting and resolving entries count where their attempt does; those of an account have no model.
_USAGE = """
    WITH spent AS (
        SELECT e.account_id, r.provider, r.model,
            count(*) FILTER (WHERE x.ends) AS attempts,
            sum(r.prompt_tokens) FILTER (WHERE x.ends) AS prompt_tokens,
            sum(r.completion_tokens) FILTER (WHERE x.ends) AS completion_tokens,
            sum(e.posted) AS posted, sum(e.posted) FILTER (WHERE r.estimated) AS estimated,
            0 AS held, 0 AS suspense
        FROM {entries} e
        LEFT JOIN reservations r ON r.id = e.reservation_id
        CROSS JOIN LATERAL (SELECT e.operation IN ('settle', 'late_settle') AS ends) AS x
        WHERE (x.ends OR e.posted <> 0)
            AND e.at >= coalesce($1, '-infinity'::timestamptz)
            AND e.at < coalesce($2, 'infinity'::timestamptz)
            {pool}
        GROUP BY 1, 2, 3
        UNION ALL
        SELECT r.key_id, r.provider, r.model, count(*), 0, 0, 0, 0,
            sum(r.amount) FILTER (WHERE r.state = 'held'),
            sum(r.amount) FILTER (WHERE r.state = 'expired')
        FROM reservations r
        WHERE (r.state = 'held' OR (r.state = 'expired' AND r.pool = 'paid'))
            AND r.created_at >= coalesce($1, '-infinity'::timestamptz)
            AND r.created_at < coalesce($2, 'infinity'::timestamptz)
            {holders} {pool}
        GROUP BY 1, 2, 3
    )
    SELECT coalesce(a.org_id, a.id) AS org_id,
        coalesce(a.team_id, CASE a.kind WHEN 'team' THEN a.id END) AS team_id,
        CASE a.kind WHEN 'key' THEN a.id END AS key_id,
        coalesce(s.provider, '') AS provider, coalesce(s.model, '') AS model,
        sum(s.attempts)::bigint AS attempts,
        coalesce(sum(s.prompt_tokens), 0)::bigint AS prompt_tokens,
        coalesce(sum(s.completion_tokens), 0)::bigint AS completion_tokens,
        sum(s.posted)::bigint AS posted, coalesce(sum(s.estimated), 0)::bigint AS estimated,
        coalesce(sum(s.held), 0)::bigint AS held,
        coalesce(sum(s.suspense), 0)::bigint AS suspense
    FROM spent s JOIN accounts a ON a.id = s.account_id
    WHERE a.kind <> 'pool'
    GROUP BY 1, 2, 3, 4, 5
    ORDER BY 1, 2 NULLS FIRST, 3 NULLS FIRST, 4, 5
"""
_BELOW = "SELECT a.id FROM accounts a WHERE $3 IN (a.org_id, a.team_id, a.id)"
_ALL = _USAGE.format(entries="entries", holders="", pool="")
_OF_ACCOUNT = _USAGE.format(
    # Each account's own entries by their index.
    entries=f"({_BELOW}) AS l CROSS JOIN LATERAL"
    " (SELECT * FROM entries n WHERE n.account_id = l.id OFFSET 0)",
    holders=f"AND r.key_id IN ({_BELOW}) AND r.org_id ="
    " (SELECT coalesce(o.org_id, o.id) FROM accounts o WHERE o.id = $3)",
    pool="",
)
_OF_POOL = _USAGE.format(entries="entries", holders="", pool="AND r.pool_id = $3")


class ReportStore:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def usage(
        self,
        *,
        since: datetime | None,
        until: datetime | None,
        account: tuple[AccountKind, int] | None,
    ) -> Sequence[asyncpg.Record]:
        """One row a key, provider and model, over attempts that settled in the time, or that were
        made in it and still hold or are suspected; and one an account that was adjusted as such.

        Raises NotFound: the account.
        """
        async with self._database.connection() as connection, connection.transaction():
            await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            rows: Sequence[asyncpg.Record]
            if account is None:
                rows = await connection.fetch(_ALL, since, until)
            else:
                await connection.execute("SET LOCAL enable_seqscan = off")
                await require_account(connection, *account)
                query = _OF_POOL if account[0] == "pool" else _OF_ACCOUNT
                rows = await connection.fetch(query, since, until, account[1])
        return rows

    async def detached(self, since: datetime | None, until: datetime | None) -> Detached | None:
        """What of this time is no longer in the ledger; None: nothing."""
        async with self._database.connection() as connection:
            return await detached_entries(connection, since, until)
