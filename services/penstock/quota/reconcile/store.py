"""What reconciliation reads and writes in the ledger's database. Amounts are nano-USD."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

import asyncpg

from penstock.core import errors, postgres
from penstock.quota.account import AccountKind
from penstock.quota.alerts.drift import record_drift
from penstock.quota.reconcile.rule import Group, Reported, Standing, rounding_nano_usd
from penstock.quota.store.changes import Change, require_account
from penstock.quota.store.database import Database

DAY_TIMEOUT_SECONDS = 60
"""Of one question about a day: it may read millions of attempts, and nobody waits for it."""
_LOCK_CLASS = "penstock.reconcile"


@dataclass(frozen=True, slots=True)
class Open:
    """An attempt whose cost only the provider knows: `amount` stands now, at most `bound` is it."""

    id: str
    key_id: int
    is_suspense: bool
    is_estimated: bool
    amount_nano_usd: int
    bound_nano_usd: int


@dataclass(frozen=True, slots=True)
class Period:
    """UTC days of a provider, [since, until), split by these accounts (none: not at all)."""

    provider: str
    since: date
    until: date
    account_ids: tuple[int, ...] = ()


class ReconcileStore:
    """One reconciliation's own connection: it holds the provider's lock as long as it lives."""

    def __init__(self, connection: postgres.Connection, period: Period) -> None:
        self._connection = connection
        self._period = period

    @classmethod
    @asynccontextmanager
    async def opened(cls, database: Database, period: Period) -> AsyncIterator["ReconcileStore"]:
        """Raises FailedPrecondition (RECONCILIATION_RUNNING): another one of this provider runs."""
        async with database.connection() as connection:
            try:
                if not await connection.fetchval(
                    "SELECT pg_try_advisory_lock(hashtext($1), hashtext($2))",
                    _LOCK_CLASS,
                    period.provider,
                ):
                    raise errors.FailedPrecondition(
                        f"provider {period.provider!r} is being reconciled already; wait for its"
                        " end",
                        reason="RECONCILIATION_RUNNING",
                    )
                await connection.execute(f"SET statement_timeout = '{DAY_TIMEOUT_SECONDS}s'")
                with suppress(asyncpg.PostgresError, TimeoutError):  # it only makes days faster
                    await connection.execute(
                        "SELECT brin_summarize_new_values('reservations_days')"
                    )
                yield cls(connection, period)
            finally:
                await postgres.end_session(connection)  # the lock ends with it

    async def check_days(self) -> None:
        """Raises FailedPrecondition (DAYS_PRUNED): attempts of them are no longer there."""
        until = await self._connection.fetchval(
            "SELECT until FROM pruned_attempts WHERE provider = $1", self._period.provider
        )
        if until is None or self._period.since > until.date():
            return
        first = until.date() + timedelta(days=1)
        raise errors.FailedPrecondition(
            f"attempts at {self._period.provider!r} until {until:%Y-%m-%d %H:%M} UTC were pruned:"
            f" what was billed for them cannot be compared; reconcile from {first} on",
            reason="DAYS_PRUNED",
            metadata={"first_day": first.isoformat()},
        )

    async def check(self, accounts: Sequence[tuple[AccountKind, int]]) -> None:
        """Raises NotFound (<KIND>_UNKNOWN), InvalidRequest (UNTIL_INVALID): a day is not over."""
        today = await self._connection.fetchval("SELECT (ledger_now() AT TIME ZONE 'UTC')::date")
        if self._period.until > today:
            raise errors.InvalidRequest(
                f"until: {self._period.until} lies after the last day that is over; at most {today}"
                " (UTC), for the provider may bill until a day's end",
                reason="UNTIL_INVALID",
            )
        for kind, account_id in accounts:
            await require_account(self._connection, kind, account_id)

    async def standings(self, day: date) -> dict[Group, Standing]:
        """Of each group of the day that the ledger knows."""
        rows = await self._connection.fetch(
            "SELECT model, account_id, count(*) AS attempts,"
            " count(*) FILTER (WHERE is_suspense) AS in_suspense,"
            " coalesce(sum(amount) FILTER (WHERE is_exact), 0)::bigint AS exact,"
            " coalesce(sum(amount) FILTER (WHERE NOT is_exact AND NOT is_suspense), 0)::bigint"
            " AS open_posted,"
            " coalesce(sum(amount) FILTER (WHERE is_suspense), 0)::bigint AS suspense,"
            " coalesce(sum(bound) FILTER (WHERE NOT is_exact), 0)::bigint AS bound"
            " FROM attempts_of_day($1, $2, $3) GROUP BY 1, 2",
            *self._day(day),
            timeout=DAY_TIMEOUT_SECONDS,
        )
        return {
            Group(day, row["model"], row["account_id"]): Standing(
                attempts=row["attempts"],
                exact_nano_usd=row["exact"],
                open_posted_nano_usd=row["open_posted"],
                suspense_nano_usd=row["suspense"],
                bound_nano_usd=row["bound"],
                attempts_in_suspense=row["in_suspense"],
            )
            for row in rows
        }

    async def open_attempts(self, group: Group, after_id: str | None, rows_max: int) -> list[Open]:
        """The next ones by id; each stays among them when it is corrected."""
        rows = await self._connection.fetch(
            "SELECT id, (SELECT r.key_id FROM reservations r WHERE r.id = a.id) AS key_id,"
            " is_suspense, is_estimated, amount, bound"
            " FROM attempts_of_day($1, $2, $3) AS a"
            " WHERE NOT is_exact AND model = $4 AND account_id = $5"
            " AND ($6::uuid IS NULL OR id > $6) ORDER BY id LIMIT $7",
            *self._day(group.day),
            group.model,
            group.account_id,
            after_id,
            rows_max,
            timeout=DAY_TIMEOUT_SECONDS,
        )
        return [
            Open(
                str(r["id"]),
                r["key_id"],
                r["is_suspense"],
                r["is_estimated"],
                r["amount"],
                r["bound"],
            )
            for r in rows
        ]

    async def remember(self, number: int, attempts: Sequence[Open]) -> None:
        """Before they are corrected: what they can have cost at most is known afterwards, too."""
        await self._connection.execute(
            "INSERT INTO reconciled_attempts (reservation_id, bound, reconciliation_id)"
            " SELECT u.id, u.bound, $3 FROM unnest($1::uuid[], $2::bigint[]) AS u (id, bound)"
            " ON CONFLICT (reservation_id) DO UPDATE"
            " SET reconciliation_id = excluded.reconciliation_id",
            [one.id for one in attempts],
            [one.bound_nano_usd for one in attempts],
            number,
        )

    async def settle_estimates(self, ids: Sequence[str]) -> None:
        """They are estimates no longer."""
        await self._connection.execute(
            "UPDATE reservations SET estimated = false"
            " WHERE id = ANY ($1::uuid[]) AND state = 'settled' AND estimated",
            ids,
        )

    async def begin(self, change: Change, digest: bytes) -> int:
        """The new import's number."""
        period = self._period
        number: int = await self._connection.fetchval(
            "INSERT INTO reconciliations"
            " (provider, since, until, actor, reason, digest, started_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, ledger_now()) RETURNING id",
            *(period.provider, period.since, period.until, change.actor, change.reason, digest),
        )
        return number

    async def end(self, number: int) -> None:
        await self._connection.execute(
            "UPDATE reconciliations SET finished_at = ledger_now() WHERE id = $1", number
        )

    async def conclude(
        self, number: int, day: date, results: Mapping[Group, tuple[Reported, Standing]], rows: int
    ) -> None:
        """What was reported of the day and what stands after it, and an alert of each drift that
        rounding does not explain; in one transaction.
        """
        async with self._connection.transaction():
            for group, (reported, standing) in results.items():
                if group.is_ours:
                    await self._store(number, group, reported, standing)
                drift = reported.amount_nano_usd - standing.posted_nano_usd
                if abs(drift) > rounding_nano_usd(standing.attempts, rows):
                    await record_drift(
                        self._connection,
                        provider=self._period.provider,
                        day=day,
                        model=group.model,
                        account_id=group.account_id or None,
                        reported_nano_usd=reported.amount_nano_usd,
                        posted_nano_usd=standing.posted_nano_usd,
                    )

    async def _store(
        self, number: int, group: Group, reported: Reported, standing: Standing
    ) -> None:
        await self._connection.execute(
            "INSERT INTO reconciled_days VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
            " ON CONFLICT (provider, day, model, account_id) DO UPDATE SET"
            " reconciliation_id = excluded.reconciliation_id, requests = excluded.requests,"
            " prompt_tokens = excluded.prompt_tokens,"
            " cached_prompt_tokens = excluded.cached_prompt_tokens,"
            " completion_tokens = excluded.completion_tokens, reported = excluded.reported,"
            " posted = excluded.posted",
            *(self._period.provider, group.day, group.model, group.account_id, number),
            *(reported.requests, reported.prompt_tokens, reported.cached_prompt_tokens),
            *(reported.completion_tokens, reported.amount_nano_usd, standing.posted_nano_usd),
        )

    def _day(self, day: date) -> tuple[str, datetime, tuple[int, ...]]:
        midnight = datetime.combine(day, time(), UTC)
        return self._period.provider, midnight, self._period.account_ids
