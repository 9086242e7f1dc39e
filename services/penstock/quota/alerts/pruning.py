"""Deletes alerts that are long over: told (or given up), and never to be told again.

An alert is told once because its `alert_key` is there. So it goes only when nothing can come to the
same key any more:

- `overage`, `late_settle`: a reservation is settled once, and its id is refused as too old a week
  after it was made.
- `budget_exhaustion_forecast`: of an open window, at most a month long.
- `suspense_old`: a check looks back for so long, and no further.
- `grant_expiring`: before the grant's end, a week at most.
- `budget_threshold`: not before its window has ended (or its budget was closed) for as long, and
  nothing is held or in suspense in it. The windows of a total do not end.
- `drift`: a day can be reconciled again at any time; they are few, and stay.
"""

from datetime import timedelta

from penstock.core import postgres

KEPT_FOR = timedelta(days=90)
"""More than the longest of these: suspense, told when 30 days old, is looked for 31 days back. And
what an operator may want to look up.
"""
PRUNE_EVERY = timedelta(hours=1)
PAGE_ALERTS = 5_000
"""Looked at in one transaction: some tens of milliseconds, on rows that nobody else asks for."""

# $1: the last id looked at, $2: page size, $3: how long they are kept. A delivery that has been due
# for as long is of a webhook that no process has any more.
_PRUNE = """
    WITH page AS MATERIALIZED (
        SELECT id, kind, alert_key, routed_at, at < c.cutoff AS is_old, c.cutoff
        FROM alerts, (SELECT ledger_now() - $3::interval AS cutoff) AS c
        WHERE id > $1 ORDER BY id LIMIT $2
    ),
    due AS MATERIALIZED (
        SELECT p.id FROM page p
        WHERE p.is_old AND p.routed_at IS NOT NULL AND p.kind <> 'drift'
            AND NOT EXISTS (
                SELECT FROM alert_deliveries d WHERE d.alert_id = p.id AND d.next_try_at >= p.cutoff
            )
            AND NOT EXISTS (
                SELECT FROM buckets b JOIN budgets x ON x.id = b.budget_id
                WHERE b.id = CASE p.kind
                        WHEN 'budget_threshold' THEN split_part(p.alert_key, ':', 2)::bigint END
                    AND (b.held > 0 OR b.suspense > 0 OR coalesce(
                        least(window_end(x.kind, x.time_zone, b.window_key), x.closed_at),
                        'infinity') >= p.cutoff)
            )
    ),
    deliveries AS (DELETE FROM alert_deliveries d USING due WHERE d.alert_id = due.id),
    gone AS (DELETE FROM alerts a USING due WHERE a.id = due.id RETURNING a.id)
    SELECT (SELECT max(id) FROM page) AS last, (SELECT bool_or(is_old) FROM page) AS has_old,
        (SELECT count(*) FROM gone) AS gone
"""


async def prune_page(
    connection: postgres.Connection, after_id: int, *, page_alerts: int = PAGE_ALERTS
) -> tuple[int | None, int]:
    """Looks at the alerts after this one. The last that it looked at (None: there is none older
    than what is kept), and how many it deleted.
    """
    found = await connection.fetchrow(_PRUNE, after_id, page_alerts, KEPT_FOR)
    assert found is not None
    return found["last"] if found["has_old"] else None, found["gone"]
