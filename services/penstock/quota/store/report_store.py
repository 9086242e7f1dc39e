"""What was moved and what was spent, read from the entries."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from penstock.quota.store.database import Database

_ENTRIES = """
    SELECT e.id, e.at, e.operation, e.reservation_id, r.request_id, r.attempt, e.key_id, r.provider,
        r.model, e.posted, e.held, e.suspense,
        x.ends AND r.state = 'settled' AS settles, r.prompt_tokens, r.completion_tokens,
        r.estimated, r.overage, e.operation = 'late_settle' OR (x.ends AND r.late) AS late,
        CASE WHEN x.ends THEN r.outcome END AS outcome,
        CASE WHEN x.ends THEN r.trace_id END AS trace_id
    FROM entries e
    JOIN reservations r ON r.id = e.reservation_id
    CROSS JOIN LATERAL (SELECT e.operation IN ('settle', 'late_settle', 'void') AS ends) AS x
    WHERE ($1::text IS NULL OR e.reservation_id IN
            (SELECT id FROM reservations WHERE request_id = $1))
        AND ($2::bigint IS NULL OR e.key_id = $2)
        AND ($3::bigint IS NULL OR e.id < $3)
    ORDER BY e.id DESC LIMIT $4
"""
_USAGE = """
    WITH spent AS (
        SELECT r.org_id, e.key_id, r.provider, r.model, count(*) AS attempts,
            sum(r.prompt_tokens) AS prompt_tokens, sum(r.completion_tokens) AS completion_tokens,
            sum(e.posted) AS posted, sum(e.posted) FILTER (WHERE r.estimated) AS estimated,
            0 AS held, 0 AS suspense
        FROM entries e JOIN reservations r ON r.id = e.reservation_id
        WHERE e.operation IN ('settle', 'late_settle')
            AND e.at >= coalesce($1, '-infinity'::timestamptz)
            AND e.at < coalesce($2, 'infinity'::timestamptz)
        GROUP BY 1, 2, 3, 4
        UNION ALL
        SELECT org_id, key_id, provider, model, count(*), 0, 0, 0, 0,
            sum(amount) FILTER (WHERE state = 'held'),
            sum(amount) FILTER (WHERE state = 'expired')
        FROM reservations
        WHERE (state = 'held' OR (state = 'expired' AND pool = 'paid'))
            AND created_at >= coalesce($1, '-infinity'::timestamptz)
            AND created_at < coalesce($2, 'infinity'::timestamptz)
        GROUP BY 1, 2, 3, 4
    )
    SELECT s.org_id, a.team_id, s.key_id, s.provider, s.model, sum(s.attempts)::bigint AS attempts,
        sum(s.prompt_tokens)::bigint AS prompt_tokens,
        sum(s.completion_tokens)::bigint AS completion_tokens, sum(s.posted)::bigint AS posted,
        coalesce(sum(s.estimated), 0)::bigint AS estimated,
        coalesce(sum(s.held), 0)::bigint AS held,
        coalesce(sum(s.suspense), 0)::bigint AS suspense
    FROM spent s JOIN accounts a ON a.id = s.key_id
    WHERE $3::bigint IS NULL OR $3 IN (a.org_id, a.team_id, a.id)
    GROUP BY 1, 2, 3, 4, 5
    ORDER BY 1, 2, 3, 4, 5
"""


class ReportStore:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def entries(
        self, *, request_id: str | None, key_id: int | None, before_id: int | None, rows_max: int
    ) -> Sequence[asyncpg.Record]:
        """Newest first, older than the entry `before_id`."""
        async with self._database.connection() as connection:
            rows: Sequence[asyncpg.Record] = await connection.fetch(
                _ENTRIES, request_id, key_id, before_id, rows_max
            )
        return rows

    async def usage(
        self, *, since: datetime | None, until: datetime | None, account_id: int | None
    ) -> Sequence[asyncpg.Record]:
        """One row a key, provider and model, over attempts that settled in the time, or that were
        made in it and still hold or are suspected.
        """
        async with self._database.connection() as connection:
            rows: Sequence[asyncpg.Record] = await connection.fetch(
                _USAGE, since, until, account_id
            )
        return rows
