"""The RPC `Reconcile`: options and rows in, progress and a report out."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.core import errors
from penstock.core.money import INT64_MAX
from penstock.quota.account import AccountKind, format_id
from penstock.quota.admin.shapes import any_account
from penstock.quota.checks import Faults
from penstock.quota.reconcile.reconciler import Applies, Reconciler, Result
from penstock.quota.reconcile.rule import Accounts, Group, Reported
from penstock.quota.reconcile.store import Period, ReconcileStore
from penstock.quota.store.adjust_store import AdjustStore
from penstock.quota.store.changes import Change
from penstock.quota.store.database import Database
from penstock.quota.v1 import admin_pb2

ROWS_MESSAGE_MAX = 10_000
"""Of one message; a client sends as many as it likes."""
GROUPS_MAX = 100_000
"""What is kept in memory, and told in one report: a year of 270 models."""
DAYS_MAX = 400
"""Of one reconciliation; more than a year is several."""
ACCOUNTS_MAX = 1_000
NAME_LENGTH_MAX = 256
COUNT_MAX = 10**15
AMOUNT_NANO_USD_MAX = 10**18
"""A thousand million USD for one row."""


class Sweeps(Protocol):
    """What has expired and nobody has met yet must be in suspense before it is counted."""

    async def sweep(self) -> int: ...


class ReconcileAdmin:
    """Checks what an operator sends, and answers it as it comes along."""

    def __init__(
        self, database: Database, ledger: Applies, sweeps: Sweeps, adjustments: AdjustStore
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._sweeps = sweeps
        self._adjustments = adjustments

    async def reconcile(
        self, requests: AsyncIterator[admin_pb2.ReconcileRequest], change: Change
    ) -> AsyncIterator[admin_pb2.ReconcileResponse]:
        """Raises:
        InvalidRequest: a message is faulty; nothing was changed.
        NotFound: an account does not exist.
        FailedPrecondition: RECONCILIATION_RUNNING, DAYS_PRUNED.
        Unavailable: it broke off; what was done stands, and the same again does the rest.
        """
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "options":
            raise errors.InvalidRequest(
                "options: the first message holds them", reason="OPTIONS_MISSING"
            )
        reading = Reading(first.options)
        if first.options.dry_run:
            change = Change(change.actor, change.reason, dry_run=True)
        async with ReconcileStore.opened(self._database, reading.period) as store:
            await store.check(reading.kinds)
            await store.check_days()
            async for request in requests:
                reading.take(request)
                yield admin_pb2.ReconcileResponse(rows_total=reading.rows)
            await self._sweeps.sweep()
            reconciler = Reconciler(store, self._ledger, self._adjustments, reading.period, change)
            done = 0
            async for day in reconciler.run(reading.reported, reading.rows_by_day):
                done += reading.rows_by_day.get(day, 0)
                yield admin_pb2.ReconcileResponse(rows_done=done, rows_total=reading.rows)
        outcome = reconciler.outcome
        kinds = {number: kind for kind, number in reading.kinds}
        yield admin_pb2.ReconcileResponse(
            rows_done=done,
            rows_total=reading.rows,
            report=admin_pb2.ReconcileReport(
                drifts=[_drift(result, kinds) for result in outcome.results],
                suspense_resolved=outcome.suspense_resolved,
                estimates_adjusted=outcome.estimates_adjusted,
                adjusted_nano_usd=outcome.adjusted_nano_usd,
            ),
        )


class Reading:
    """The messages as they come: checked, and summed by group."""

    def __init__(self, options: admin_pb2.ReconcileOptions) -> None:
        faults = Faults()
        provider = faults.text(
            "provider", options.provider, length_min=1, length_max=NAME_LENGTH_MAX
        )
        since = _day(faults, "since", options.since, given=options.HasField("since"))
        until = _day(faults, "until", options.until, given=options.HasField("until"))
        if since and until and not 0 < (until - since).days <= DAYS_MAX:
            faults.add("until", "UNTIL_INVALID", f"lies 1 to {DAYS_MAX} days after since")
        if len(options.accounts) > ACCOUNTS_MAX:
            faults.add("accounts", "ACCOUNTS_INVALID", f"takes at most {ACCOUNTS_MAX}")
        self.kinds: list[tuple[AccountKind, int]] = []
        by_source: dict[tuple[str, str], int] = {}
        for n, one in enumerate(options.accounts[:ACCOUNTS_MAX]):
            field = f"accounts[{n}]"
            faults.text(f"{field}.project", one.project, length_max=NAME_LENGTH_MAX)
            faults.text(f"{field}.key", one.key, length_max=NAME_LENGTH_MAX)
            account = any_account(
                faults, f"{field}.account_id", one.account_id, "org", "team", "key"
            )
            if by_source.setdefault((one.project, one.key), account[1]) != account[1]:
                faults.add(
                    field, "ACCOUNTS_INVALID", "names a project and key that is given before"
                )
            self.kinds.append(account)
        faults.check()
        assert since
        assert until
        self._accounts = Accounts(by_source)
        ids = tuple(sorted(set(by_source.values())))
        self.period = Period(provider, since, until, ids)
        self.reported: dict[Group, Reported] = {}
        self.rows_by_day: dict[date, int] = {}
        self.rows = 0

    def take(self, request: admin_pb2.ReconcileRequest) -> None:
        """Raises InvalidRequest: nothing of it counts, and the call is over."""
        if request.WhichOneof("message") != "rows":
            raise errors.InvalidRequest(
                "rows: each message but the first holds some", reason="ROWS_MISSING"
            )
        rows = request.rows.rows
        if len(rows) > ROWS_MESSAGE_MAX:
            raise errors.InvalidRequest(
                f"rows: {len(rows)} in one message; at most {ROWS_MESSAGE_MAX}",
                reason="BATCH_TOO_LARGE",
            )
        faults = Faults()
        for n, row in enumerate(rows):
            self._row(faults, f"rows[{n}]", row)
        faults.check()

    def _row(self, faults: Faults, field: str, row: admin_pb2.ReportedRow) -> None:
        day = _day(faults, f"{field}.day", row.day, given=row.HasField("day"))
        if day is not None and not self.period.since <= day < self.period.until:
            faults.add(f"{field}.day", "DAY_INVALID", f"{day} is not from since to before until")
        faults.text(f"{field}.model", row.model, length_min=1, length_max=NAME_LENGTH_MAX)
        faults.text(f"{field}.project", row.project, length_max=NAME_LENGTH_MAX)
        faults.text(f"{field}.key", row.key, length_max=NAME_LENGTH_MAX)
        for name in ("requests", "prompt_tokens", "cached_prompt_tokens", "completion_tokens"):
            faults.integer(f"{field}.{name}", getattr(row, name), low=0, high=COUNT_MAX)
        if not row.HasField("amount_nano_usd"):
            faults.add(
                f"{field}.amount_nano_usd",
                "AMOUNT_MISSING",
                "is needed; usage without a cost is priced before it is sent",
            )
        amount = faults.amount(
            f"{field}.amount_nano_usd", row.amount_nano_usd, high=AMOUNT_NANO_USD_MAX
        )
        if day is None:
            return
        group = self._accounts.group(day, row.model, row.project, row.key)
        total = self.reported.setdefault(group, Reported())
        total.requests += row.requests
        total.prompt_tokens += row.prompt_tokens
        total.cached_prompt_tokens += row.cached_prompt_tokens
        total.completion_tokens += row.completion_tokens
        total.amount_nano_usd += amount
        largest = max(
            total.amount_nano_usd, total.requests, total.prompt_tokens, total.completion_tokens
        )
        if largest > INT64_MAX:
            faults.add(field, "AMOUNT_TOO_LARGE", "makes its day and model more than int64 holds")
        if len(self.reported) > GROUPS_MAX:
            faults.add(field, "GROUPS_TOO_MANY", f"at most {GROUPS_MAX} days and models at once")
        self.rows += 1
        self.rows_by_day[day] = self.rows_by_day.get(day, 0) + 1


def _day(faults: Faults, field: str, value: Timestamp, *, given: bool) -> date | None:
    """The start of a UTC day."""
    name = field.rsplit(".", maxsplit=1)[-1].upper()
    if not given:
        faults.add(field, f"{name}_MISSING", "is needed")
        return None
    instant = faults.instant(field, value)
    if instant is None:
        return None
    if instant != datetime(instant.year, instant.month, instant.day, tzinfo=UTC):
        faults.add(field, f"{name}_INVALID", f"{instant.isoformat()} is no midnight of UTC")
        return None
    return instant.date()


def _drift(result: Result, kinds: dict[int, AccountKind]) -> admin_pb2.Drift:
    group, reported = result.group, result.reported
    day = Timestamp()
    day.FromDatetime(datetime(group.day.year, group.day.month, group.day.day, tzinfo=UTC))
    account = format_id(kinds[group.account_id], group.account_id) if group.account_id else ""
    return admin_pb2.Drift(
        day=day,
        model=group.model,
        account_id=account,
        reported_nano_usd=reported.amount_nano_usd,
        posted_before_nano_usd=result.before.posted_nano_usd,
        posted_after_nano_usd=result.after.posted_nano_usd,
        suspense_before_nano_usd=result.before.suspense_nano_usd,
        drift_nano_usd=result.drift_nano_usd,
        reported_requests=reported.requests,
        posted_requests=result.after.attempts_settled,
    )
