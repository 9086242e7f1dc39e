"""One reconciliation: day by day, group by group, until the ledger says what the provider billed.

Each step can be repeated: what an attempt can have cost is remembered before it is corrected, its
correction is one transaction, and a run that begins again after a crash finds every attempt where
the one before left it and plans the same parts. While it runs, routers settle; what they change in
a group that was just done is seen, and the group is done again.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Protocol

from penstock.core import errors
from penstock.core.ids import uuid7_unix_ms
from penstock.quota.ledger import Answer, Operation, Settle
from penstock.quota.reconcile.rule import Group, Plan, Reported, Standing, plan
from penstock.quota.reconcile.store import Open, Period, ReconcileStore
from penstock.quota.store.adjust_store import Adjustment, AdjustStore
from penstock.quota.store.changes import Change
from penstock.quota.store.database import BUSY

OUTCOME = "RECONCILED"
"""Of an attempt in suspense that was settled by what the provider billed (0006_reconcile.sql)."""
PAGE_ATTEMPTS = 256
"""What is in memory of a group at once."""
PASSES_MAX = 3
"""Of one group that routers change meanwhile. What is not right then is reported as drift, and the
next reconciliation sees it."""
TRIES_MAX = 5
"""Of one adjustment whose account somebody else changes just now."""
RETRY_SECONDS = 0.05


class Applies(Protocol):
    """The ledger's own way for all that settles: its batches."""

    async def apply(self, operation: Operation) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Result:
    """Of one group, before and after."""

    group: Group
    reported: Reported
    before: Standing
    after: Standing

    @property
    def drift_nano_usd(self) -> int:
        return self.reported.amount_nano_usd - self.after.posted_nano_usd


@dataclass(slots=True)
class Outcome:
    """Of all of it."""

    results: list[Result] = field(default_factory=list)
    suspense_resolved: int = 0
    estimates_adjusted: int = 0
    adjusted_nano_usd: int = 0


class Reconciler:
    """Of one period of one provider, by one operator."""

    def __init__(
        self,
        store: ReconcileStore,
        ledger: Applies,
        adjustments: AdjustStore,
        period: Period,
        change: Change,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._adjustments = adjustments
        self._period = period
        self._change = change
        self._number = 0
        self.outcome = Outcome()

    async def run(
        self, reported: Mapping[Group, Reported], rows_by_day: Mapping[date, int]
    ) -> AsyncIterator[date]:
        """Each day once it is done; the outcome is complete at the end."""
        if not self._change.dry_run:
            self._number = await self._store.begin(self._change, digest(reported))
        days = (self._period.until - self._period.since).days
        for n in range(days):
            day = self._period.since + timedelta(days=n)
            of_day = {g: r for g, r in reported.items() if g.day == day}
            await self._day(day, of_day, rows_by_day.get(day, 0))
            yield day
        if not self._change.dry_run:
            await self._store.end(self._number)

    async def _day(self, day: date, reported: Mapping[Group, Reported], rows: int) -> None:
        before = await self._store.standings(day)
        after = before
        if self._change.dry_run:
            after = dict(before)
            for group, standing in before.items():
                after[group] = await self._try(group, reported.get(group), standing)
        else:
            for turn in range(PASSES_MAX):
                changed = False
                for group, standing in sorted(after.items()):
                    changed |= await self._group(turn, group, reported.get(group), standing)
                if not changed:
                    break
                after = await self._store.standings(day)
        groups = sorted({*reported, *before, *after})
        found = [
            Result(
                group,
                reported.get(group, Reported()),
                before.get(group, Standing()),
                after.get(group, Standing()),
            )
            for group in groups
        ]
        self.outcome.results += found
        if not self._change.dry_run:
            concluded = {one.group: (one.reported, one.after) for one in found}
            await self._store.conclude(self._number, day, concluded, rows)

    async def _try(self, group: Group, reported: Reported | None, standing: Standing) -> Standing:
        """What would be."""
        planned = plan(reported.amount_nano_usd if reported else 0, standing)
        async for page, parts in self._pages(group, planned):
            for one, part in zip(page, parts, strict=True):
                self._count(one, part)
        return Standing(
            attempts=standing.attempts,
            exact_nano_usd=standing.exact_nano_usd,
            open_posted_nano_usd=planned.target_nano_usd,
            bound_nano_usd=standing.bound_nano_usd,
        )

    async def _group(
        self, turn: int, group: Group, reported: Reported | None, standing: Standing
    ) -> bool:
        """Brings the open attempts to their parts; whether any had to be moved."""
        planned = plan(reported.amount_nano_usd if reported else 0, standing)
        changed = False
        async for page, parts in self._pages(group, planned):
            due = [
                (one, part)
                for one, part in zip(page, parts, strict=True)
                if one.is_suspense or one.is_estimated or part != one.amount_nano_usd
            ]
            if not due:
                continue
            changed = True
            await self._store.remember(self._number, [one for one, _ in due])
            await self._resolve_all([(one, part) for one, part in due if one.is_suspense])
            estimates = [(one, part) for one, part in due if not one.is_suspense]
            for one, part in estimates:
                await self._adjust(turn, one, part)
                self._count(one, part)
            await self._store.settle_estimates([one.id for one, _ in estimates])
        return changed

    async def _pages(
        self, group: Group, planned: Plan
    ) -> AsyncIterator[tuple[Sequence[Open], Sequence[int]]]:
        reached, last = 0, None
        while True:
            page = await self._store.open_attempts(group, last, PAGE_ATTEMPTS)
            if not page:
                return
            bounds = [one.bound_nano_usd for one in page]
            yield page, planned.parts(reached, bounds)
            reached += sum(bounds)
            last = page[-1].id

    async def _resolve_all(self, due: Sequence[tuple[Open, int]]) -> None:
        """All of them, also where one fails: none goes on when this run is over."""
        found = await asyncio.gather(
            *(self._resolve(one, part) for one, part in due), return_exceptions=True
        )
        for failed in found:
            if failed is not None:
                raise failed

    async def _resolve(self, one: Open, part: int) -> None:
        try:
            await self._ledger.apply(
                Settle(
                    reservation_id=one.id,
                    id_unix_ms=uuid7_unix_ms(one.id),
                    amount_nano_usd=part,
                    prompt_tokens=0,
                    cached_prompt_tokens=0,
                    completion_tokens=0,
                    reasoning_tokens=0,
                    estimated=False,
                    outcome=OUTCOME,
                    trace_id="",
                    key_id=one.key_id,
                )
            )
        except errors.FailedPrecondition:
            # Its router settled or voided it just now: that stands, and the next pass counts it.
            return
        self._count(one, part)

    async def _adjust(self, turn: int, one: Open, part: int) -> None:
        if part == one.amount_nano_usd:
            return
        wanted = Adjustment(
            # Once in this pass of this import; another import corrects what it finds.
            adjustment_key=f"reconcile:{self._number}:{turn}:{one.id}",
            account=None,
            reservation_id=one.id,
            amount_nano_usd=part - one.amount_nano_usd,
        )
        for again in range(TRIES_MAX):
            try:
                await self._adjustments.adjust(self._change, wanted)
                return
            except errors.Unavailable as error:
                if error.reason != BUSY or again == TRIES_MAX - 1:
                    raise
            await asyncio.sleep(RETRY_SECONDS * 2**again)

    def _count(self, one: Open, part: int) -> None:
        if one.is_suspense:
            self.outcome.suspense_resolved += 1
        elif one.is_estimated or part != one.amount_nano_usd:
            self.outcome.estimates_adjusted += 1
            self.outcome.adjusted_nano_usd += part - one.amount_nano_usd


def digest(reported: Mapping[Group, Reported]) -> bytes:
    """SHA-256 of what was reported, in the order of its groups."""
    found = hashlib.sha256()
    for group, one in sorted(reported.items()):
        found.update(repr((group.day.isoformat(), group.model, group.account_id)).encode())
        found.update(
            repr(
                (
                    one.requests,
                    one.prompt_tokens,
                    one.cached_prompt_tokens,
                    one.completion_tokens,
                    one.amount_nano_usd,
                )
            ).encode()
        )
    return found.digest()
