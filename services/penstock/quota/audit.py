"""`penstock quota audit`: recomputes every balance from the entries and names whatever differs.

Reads one snapshot, changes nothing, and may run while the ledger is in use.
"""

from dataclasses import dataclass

import asyncpg

from penstock.core import postgres

FINDINGS_MAX = 100
"""Of each check: a broken ledger is broken after the first hundred, too."""

# Each query returns rows of one text column: what is wrong.
_CHECKS = {
    "each entry's debits equal its credits": """
        SELECT format('entry %s: legs sum to %s', id, available + held + suspense + posted)
        FROM entries WHERE available + held + suspense + posted <> 0
    """,
    "each balance is the fold of its entries": """
        WITH folds AS (
            SELECT bucket_id, sum(posted) AS posted, sum(held) AS held, sum(suspense) AS suspense
            FROM entries, unnest(bucket_ids) AS bucket_id GROUP BY bucket_id
        )
        SELECT format('bucket %s: posted/held/suspense are %s/%s/%s, its entries say %s/%s/%s',
            coalesce(b.id, f.bucket_id), b.posted, b.held, b.suspense, f.posted, f.held, f.suspense)
        FROM buckets b FULL JOIN folds f ON f.bucket_id = b.id
        WHERE (b.posted, b.held, b.suspense) IS DISTINCT FROM
            (coalesce(f.posted, 0), coalesce(f.held, 0), coalesce(f.suspense, 0))
            OR b.id IS NULL
    """,
    "each reservation is the fold of its entries": """
        WITH folds AS (
            SELECT reservation_id, sum(posted) AS posted, sum(held) AS held,
                sum(suspense) AS suspense,
                count(*) FILTER (WHERE operation = 'reserve') AS reserves,
                count(*) FILTER (WHERE operation IN ('settle', 'late_settle', 'void')) AS ends,
                count(DISTINCT bucket_ids) AS paths
            FROM entries GROUP BY reservation_id
        ),
        owed AS (
            SELECT id, state, posted,
                CASE state WHEN 'held' THEN amount ELSE 0 END AS held,
                CASE WHEN state = 'expired' AND pool = 'paid' THEN amount ELSE 0 END AS suspense,
                CASE WHEN state IN ('settled', 'voided') THEN 1 ELSE 0 END AS ends
            FROM reservations WHERE cardinality(bucket_ids) > 0
        )
        SELECT format('reservation %s (%s): its entries do not add up to its state',
            coalesce(o.id, f.reservation_id), o.state)
        FROM owed o FULL JOIN folds f ON f.reservation_id = o.id
        WHERE (o.posted, o.held, o.suspense, 1, o.ends, 1) IS DISTINCT FROM
            (f.posted, f.held, f.suspense, f.reserves, f.ends, f.paths)
    """,
    "each overage is one that was flagged": """
        SELECT format('bucket %s: %s is over its limit of %s, and no overage was flagged in it',
            b.id, b.posted + b.held + b.suspense, x.limit_nano_usd)
        FROM buckets b JOIN budgets x ON x.id = b.budget_id
        WHERE b.posted + b.held + b.suspense > x.limit_nano_usd
            AND x.limit_lowered_at IS NULL
            AND NOT EXISTS (
                SELECT FROM reservations r
                WHERE b.id = ANY (r.bucket_ids) AND (r.overage OR r.late)
            )
    """,
}


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant and what breaks it; empty: it holds."""

    name: str
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        checks: Each invariant.
        entries, reservations, buckets: How many rows were looked at.
        posted_nano_usd: All that was ever posted, once for each attempt.
    """

    checks: tuple[Check, ...]
    entries: int
    reservations: int
    buckets: int
    posted_nano_usd: int

    @property
    def ok(self) -> bool:
        return all(not check.findings for check in self.checks)


async def audit(connection: postgres.Connection) -> AuditReport:
    """Audits over one connection, in one read-only snapshot."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # A full pass over a large ledger may take its time.
        await connection.execute("SET LOCAL statement_timeout = 0")
        checks = []
        for name, query in _CHECKS.items():
            rows = await connection.fetch(
                f"SELECT * FROM ({query}) AS found LIMIT {FINDINGS_MAX}",  # noqa: S608 - the queries above
                timeout=None,
            )
            checks.append(Check(name, tuple(row[0] for row in rows)))
        counts = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM entries) AS entries,"
            " (SELECT count(*) FROM reservations) AS reservations,"
            " (SELECT count(*) FROM buckets) AS buckets,"
            " (SELECT coalesce(sum(posted), 0)::bigint FROM entries) AS posted"
        )
    assert counts is not None
    return AuditReport(
        checks=tuple(checks),
        entries=counts["entries"],
        reservations=counts["reservations"],
        buckets=counts["buckets"],
        posted_nano_usd=counts["posted"],
    )


async def audit_dsn(dsn: str) -> AuditReport:
    """For the command line: connects, audits, disconnects."""
    connection = await asyncpg.connect(dsn, timeout=postgres.CONNECT_TIMEOUT_SECONDS)
    try:
        return await audit(connection)
    finally:
        await connection.close()
