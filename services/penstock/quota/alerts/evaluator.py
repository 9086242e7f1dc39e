"""Looks for facts that no single operation of the ledger can see, and records each once; deletes
what is long over.

Any number of processes may do it at once. A fact is once by its `alert_key`, whoever finds it; that
a check runs in one process at a time only saves work. All time is the database's.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from penstock.core import postgres
from penstock.quota.alerts.forecast import KINDS, LIMIT_PARTS_MIN, Spending, exhausted_at
from penstock.quota.alerts.pruning import PRUNE_EVERY, prune_page
from penstock.quota.store.database import Database

GRANT_NOTICES_DAYS = (1, 7)
"""Before a grant's end; ascending."""
CHECK_EVERY = timedelta(minutes=5)
"""Of all processes together: a forecast is about hours and days."""
SUSPENSE_BACK = timedelta(days=31)
"""How far a check looks back: beyond any outage of all processes, and a bound on its work."""

_BEGIN_CHECK = """
    SELECT name FROM alert_checks
    WHERE name = $1 AND ran_at <= (SELECT ledger_now()) - $2::interval
    FOR UPDATE SKIP LOCKED
"""
_RECORD = """
    INSERT INTO alerts (alert_key, kind, at, account_id, detail)
    SELECT x.alert_key, $1, ledger_now(), x.account_id, x.detail::jsonb
    FROM unnest($2::text[], $3::bigint[], $4::text[]) AS x (alert_key, account_id, detail)
    ON CONFLICT DO NOTHING
"""
# The window's key is computed once for each kind and zone, not for each budget.
_SPENDINGS = f"""
    WITH now AS MATERIALIZED (SELECT ledger_now() AS at),
    windows AS MATERIALIZED (
        SELECT z.kind, z.time_zone, k.key, now.at,
            window_start(z.kind, z.time_zone, k.key) AS starts_at,
            window_end(z.kind, z.time_zone, k.key) AS ends_at
        FROM now, (
            SELECT DISTINCT kind, time_zone FROM budgets
            WHERE unit = 'nano_usd' AND closed_at IS NULL AND kind = ANY ($1::window_kind[])
        ) AS z,
        LATERAL (SELECT window_key(z.kind, z.time_zone, now.at) AS key) AS k
    )
    SELECT b.id AS bucket_id, x.id AS budget_id, x.name, x.kind, x.account_id, x.limit_amount,
        b.posted + b.suspense AS spent, w.at, w.starts_at, w.ends_at
    FROM windows w
    JOIN budgets x ON x.kind = w.kind AND x.time_zone = w.time_zone
    JOIN buckets b ON b.budget_id = x.id AND b.window_key = w.key
    WHERE x.unit = 'nano_usd' AND x.closed_at IS NULL AND x.limit_amount > 0
        AND b.posted + b.suspense < x.limit_amount
        AND b.posted + b.suspense >= x.limit_amount / {LIMIT_PARTS_MIN}
        AND NOT EXISTS (
            SELECT FROM alerts a WHERE a.alert_key = format('forecast:%s:%s', b.id, x.limit_amount)
        )
"""  # noqa: S608 - a constant
# Only hours that are wholly older than the limit: nothing joins them later, their sum is final.
_SUSPENSE = """
    SELECT r.org_id, r.provider, date_trunc('hour', r.resolved_at) AS hour,
        count(*) AS reservations, sum(r.amount)::bigint AS suspense,
        (array_agg(r.id::text ORDER BY r.resolved_at))[1:10] AS oldest
    FROM reservations r, (SELECT date_trunc('hour', ledger_now() - $1::interval) AS before) AS w
    WHERE r.state = 'expired' AND r.pool = 'paid' AND r.amount > 0
        AND r.resolved_at < w.before AND r.resolved_at >= w.before - $2::interval
    GROUP BY r.org_id, r.provider, date_trunc('hour', r.resolved_at)
"""
_GRANTS = """
    SELECT g.id, g.name, g.account_id, g.amount, g.starts_at, g.expires_at, now.at,
        g.amount - b.posted - b.held - b.suspense - b.lapsed AS unused
    FROM (SELECT ledger_now() AS at) AS now, grants g JOIN buckets b ON b.grant_id = g.id
    WHERE g.expires_at < 'infinity' AND g.expires_at <= (SELECT ledger_now()) + $1::interval
        AND g.expires_at > (SELECT ledger_now()) AND g.starts_at <= now.at
        AND g.amount - b.posted - b.held - b.suspense - b.lapsed > 0
"""


@dataclass(frozen=True, slots=True)
class Fact:
    """What is recorded once. `key` names it."""

    key: str
    account_id: int | None
    detail: dict[str, Any]


class Evaluator:
    """The checks; `run` makes those that are due."""

    def __init__(
        self,
        database: Database,
        *,
        suspense_age: timedelta,
        every: timedelta = CHECK_EVERY,
    ) -> None:
        self._database = database
        self._every = every
        self._checks: dict[str, Callable[[postgres.Connection], Awaitable[Sequence[Fact]]]] = {
            "budget_exhaustion_forecast": forecasts,
            "suspense_old": partial(old_suspense, age=suspense_age),
            "grant_expiring": expiring_grants,
        }

    async def run(self) -> None:
        """Makes every check that no process has made for a while."""
        for kind, check in self._checks.items():
            async with self._database.connection() as connection, connection.transaction():
                if await self._begin(connection, kind, self._every):
                    await _record(connection, kind, await check(connection))
        await self._prune()

    async def _prune(self) -> None:
        """A page in a transaction: it may take as many as it wants, and holds up nobody."""
        async with self._database.connection() as connection, connection.transaction():
            if not await self._begin(connection, "prune", PRUNE_EVERY):
                return
        last: int | None = 0
        while last is not None:
            async with self._database.connection() as connection:
                last, _ = await prune_page(connection, last)

    async def _begin(self, connection: postgres.Connection, name: str, every: timedelta) -> bool:
        """Whether it is due and nobody else is at it. A process that dies leaves it due."""
        await connection.execute(
            "INSERT INTO alert_checks VALUES ($1, '-infinity') ON CONFLICT DO NOTHING", name
        )
        if await connection.fetchval(_BEGIN_CHECK, name, every) is None:
            return False
        await connection.execute(
            "UPDATE alert_checks SET ran_at = ledger_now() WHERE name = $1", name
        )
        return True


async def forecasts(connection: postgres.Connection) -> Sequence[Fact]:
    """Budgets that will be used up before their window ends: once for each window and limit."""
    facts = []
    for row in await connection.fetch(_SPENDINGS, list(KINDS)):
        spending = Spending(
            spent_nano_usd=row["spent"],
            limit_nano_usd=row["limit_amount"],
            start=row["starts_at"],
            now=row["at"],
            end=row["ends_at"],
        )
        at = exhausted_at(spending)
        if at is None:
            continue
        detail = {
            "budget_id": f"budget_{row['budget_id']}",
            "budget_name": row["name"],
            "window": row["kind"],
            "limit_nano_usd": spending.limit_nano_usd,
            "spent_nano_usd": spending.spent_nano_usd,
            "exhausted_at": _minute(at),
            "window_ends_at": _minute(spending.end),
        }
        key = f"forecast:{row['bucket_id']}:{spending.limit_nano_usd}"
        facts.append(Fact(key, row["account_id"], detail))
    return facts


async def old_suspense(connection: postgres.Connection, age: timedelta) -> Sequence[Fact]:
    """Suspense that is older: once for each organisation, provider and hour in which holds expired.

    One alert for each hold would be thousands after the crash of one busy router.
    """
    return [
        Fact(
            f"suspense:{row['org_id']}:{row['provider']}:{row['hour']:%Y%m%dT%H}",
            row["org_id"],
            {
                "provider": row["provider"],
                "hour": _minute(row["hour"]),
                "older_than_hours": age // timedelta(hours=1),
                "reservations": row["reservations"],
                "suspense_nano_usd": row["suspense"],
                "oldest_reservation_ids": row["oldest"],
            },
        )
        for row in await connection.fetch(_SUSPENSE, age, SUSPENSE_BACK)
    ]


async def expiring_grants(connection: postgres.Connection) -> Sequence[Fact]:
    """Grants with an unused rest whose end is near: once for each notice.

    A grant that lives no longer than a notice does not need it: its end was near when it was made.
    """
    facts = []
    furthest = timedelta(days=GRANT_NOTICES_DAYS[-1])
    for row in await connection.fetch(_GRANTS, furthest):
        left, life = row["expires_at"] - row["at"], row["expires_at"] - row["starts_at"]
        days = next(n for n in GRANT_NOTICES_DAYS if left <= timedelta(days=n))
        if life <= timedelta(days=days):
            continue
        detail = {
            "grant_id": f"grant_{row['id']}",
            "grant_name": row["name"],
            "amount_nano_usd": row["amount"],
            "unused_nano_usd": row["unused"],
            "expires_at": _minute(row["expires_at"]),
            "notice_days": days,
        }
        facts.append(Fact(f"grant:{row['id']}:{days}", row["account_id"], detail))
    return facts


async def _record(connection: postgres.Connection, kind: str, facts: Sequence[Fact]) -> None:
    """In the order of their keys: two processes that insert the same ones cannot deadlock."""
    ordered = sorted(facts, key=lambda fact: fact.key)
    await connection.execute(
        _RECORD,
        kind,
        [fact.key for fact in ordered],
        [fact.account_id for fact in ordered],
        [msgspec.json.encode(fact.detail).decode() for fact in ordered],
    )


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
