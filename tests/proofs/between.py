"""What commits between any two statements of a batch: everything is as if it had come wholly
before the batch, or wholly after it (LEDGER, I1 to I12 of concurrent sessions).

In each case a batch stands still before one statement of `apply_batch`, or of a function that it
calls (see gates.py); another session commits a batch, a change by an operator or the passing of
time, or waits for the batch's locks; then the batch goes on. The answers to both and all balances,
of the tables and of the entries, must be those of the independent auditor in one of the two orders.

    PYTHONPATH=tests python -m proofs.between --per-gap 40 --seed 7
    PYTHONPATH=tests python -m proofs.between --seed 7 --only 1234       # that case alone
"""

import argparse
import asyncio
import copy
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from penstock.core.errors import PenstockError
from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from penstock.quota.ledger import Operation
from penstock.quota.store.database import LOCK_TIMEOUT_MS, Database
from penstock.quota.store.ledger_store import Outcome
from proofs import gates
from proofs.between_acts import (
    ACCOUNTS,
    LATER,
    SETUP_AT,
    Act,
    Place,
    make_place,
    set_up,
    some_act,
    some_batch,
)
from proofs.servers import private_server
from support import worlds
from support.auditor import Auditor, Verdict
from support.ledger import Ledger, clocked_database
from support.verdicts import differ

PUT_OFF = "ABANDONED_HOLDS"
"""No verdict: the caller asks again, when locked holds of others may be gone."""
DRAWS_MAX = 150
"""For the first case that stands at a gap: not every batch comes by every statement."""
DRAWS_EACH_MAX = 20
"""Where one has stood already."""
LOCKED_SHARE = 0.25
"""Of the cases: those in which abandoned holds of another organisation cannot be resolved."""
HOUSE_CASES_MAX = 150
"""In one database: to fold the entries of one world those of all are read."""
LOOK_SECONDS = 0.001
"""A session that waits for a lock tells nobody: it is looked for."""


@dataclass
class Result:
    """`reached`: how many cases stood still at each gap; `missed`: gaps where none did, such as
    those that take hundreds of abandoned holds; `failures` by case.
    """

    cases: int = 0
    reached: Counter[str] = field(default_factory=Counter)
    waited: int = 0
    missed: list[gates.Gap] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)


@dataclass
class House:
    """Sessions on one ledger: the batch's, the other's, the one that opens the gate, and an
    administrator's who at times has a stranger's rows locked.
    """

    ledger: Ledger
    other: Ledger
    keeper: asyncpg.Connection
    locker: asyncpg.Connection
    gaps: list[gates.Gap]
    pids: tuple[int, int, int]

    async def waits(self, task: "asyncio.Task[Any]", pid: int, *for_pids: int) -> bool:
        """Returns when a session waits for one of the others (true), or its task is done."""
        query = "SELECT pg_blocking_pids($1) && $2"
        while not task.done():
            if await self.keeper.fetchval(query, pid, for_pids):
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False


@asynccontextmanager
async def opened(server: PrivateServer) -> AsyncIterator[House]:
    dsn = await clocked_database(server)
    keeper, locker = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    gaps = await gates.install(keeper, "apply_batch")
    ledgers, pids = [], []
    for name in (gates.GATED, "proof-other"):
        # One connection each, so that it is known whom to look for.
        pool = await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=1,
            server_settings={"application_name": name, "lock_timeout": str(LOCK_TIMEOUT_MS)},
        )
        ledger = Ledger.over(dsn, Database(pool))
        ledgers.append(ledger)
        pids.append((await ledger.fetch("SELECT pg_backend_pid()"))[0][0])
    one, other = ledgers
    try:
        yield House(one, other, keeper, locker, gaps, (*pids, keeper.get_server_pid()))
    finally:
        await one.database.close()
        await other.database.close()
        await keeper.close()
        await locker.close()


Choose = Callable[[Place], tuple[Act, Act]]
"""The batch that stands at the gap, and what comes meanwhile."""


def anything(place: Place) -> tuple[Act, Act]:
    return some_batch(place), some_act(place)


@dataclass
class Case:
    """One batch, one gap, one act of another."""

    house: House
    gap: gates.Gap
    rng: random.Random
    choose: Choose
    locked_share: float = LOCKED_SHARE
    stood: bool = False
    waited: bool = False

    async def run(self) -> str:
        """What differs; empty: nothing."""
        keeper = self.house.keeper
        ids = await worlds.new_ids(keeper, "accounts", ACCOUNTS)
        place = make_place(self.rng, ids)
        await self.house.other.set_clock(SETUP_AT)
        await worlds.install(keeper, [place.world], SETUP_AT)
        auditor = Auditor(SETUP_AT, place.world)
        for operations in set_up(place):
            outcomes = await self.house.other.apply(*operations)
            if why := _differ(operations, outcomes, auditor.apply(*operations)):
                return f"set-up: {why}"
        auditor.advance(LATER)
        await self.house.other.set_clock(SETUP_AT + LATER)
        batch, act = self.choose(place)
        what = f"{self.gap}, {batch.name}, meanwhile {act.name}"
        try:
            told, told_other = await self._meet(place, batch, act)
        except PenstockError as error:
            return f"{what}: {error}"
        await self.house.other.store.sweep()
        before, after = copy.deepcopy(auditor), auditor
        whys = [
            await self._disagree(before, [(batch, told), (act, told_other)]),
            await self._disagree(after, [(act, told_other), (batch, told)]),
        ]
        if "" in whys:
            return ""
        return f"{what}: wholly before: {whys[0]}; wholly after: {whys[1]}"

    @asynccontextmanager
    async def _locked(self, place: Place) -> AsyncIterator[None]:
        """Seldom: abandoned holds of another organisation at the pool cannot be resolved."""
        transaction = self.house.locker.transaction()
        await transaction.start()
        if self.rng.random() < self.locked_share:
            ids = [b.id for b in place.world.budgets if b.account_id == place.strange_org]
            query = "SELECT 1 FROM buckets WHERE budget_id = ANY ($1) FOR UPDATE"
            await self.house.locker.execute(query, ids)
        try:
            yield
        finally:
            await transaction.rollback()

    async def _meet(
        self, place: Place, batch: Act, act: Act
    ) -> tuple[list[Outcome], list[Outcome]]:
        """The answers to both."""
        house = self.house
        batch_pid, other_pid, keeper_pid = house.pids
        locker_pid = house.locker.get_server_pid()
        await gates.choose(house.keeper, self.gap)
        await house.keeper.execute(f"SELECT pg_advisory_lock({gates.LOCK})")
        try:
            async with self._locked(place):
                first = asyncio.create_task(batch.do(house.ledger))
                self.stood = await house.waits(first, batch_pid, keeper_pid)
                second = asyncio.create_task(act.do(house.other))
                self.waited = await house.waits(second, other_pid, batch_pid, locker_pid)
        finally:
            await house.keeper.execute(f"SELECT pg_advisory_unlock({gates.LOCK})")
        return await first, await second

    async def _disagree(self, auditor: Auditor, order: Sequence[tuple[Act, list[Outcome]]]) -> str:
        """Why it was not in this order; empty: it was."""
        for what, outcomes in order:
            operations, told = _answered(what.operations, outcomes)
            verdicts = what.change(auditor) if what.change else auditor.apply(*operations)
            if why := _differ(operations, told, verdicts):
                return why
        auditor.sweep()
        (balances,) = await worlds.balances(self.house.keeper, [auditor.world])
        if why := worlds.difference(worlds.expected(auditor), balances):
            return f"balances: {why}"
        (folds,) = await worlds.folds(self.house.keeper, [auditor.world])
        why = worlds.difference(worlds.expected(auditor, money_only=True), folds)
        return f"entries: {why}" if why else ""


def _answered(
    operations: Sequence[Operation], outcomes: Sequence[Outcome]
) -> tuple[list[Operation], list[Outcome]]:
    """Without those that are to be asked again, which must have changed nothing."""
    told = zip(operations, outcomes, strict=True)
    kept = [(o, outcome) for o, outcome in told if _reason(outcome) != PUT_OFF]
    return [o for o, _ in kept], [outcome for _, outcome in kept]


def _reason(outcome: Outcome) -> str:
    return outcome.reason if isinstance(outcome, PenstockError) else ""


def _differ(
    operations: Sequence[Operation], outcomes: Sequence[Outcome], verdicts: Sequence[Verdict]
) -> str:
    told = zip(operations, outcomes, verdicts, strict=True)
    # Retry times are the simulation's business: they are read with what commits meanwhile.
    whys = (differ(operation, outcome, verdict, first=True) for operation, outcome, verdict in told)
    return "; ".join(filter(None, whys))


@dataclass(frozen=True)
class Plan:
    """`per_gap`: cases that stand at each gap. `only`: that case alone. `first`: to a failure."""

    seed: int
    per_gap: int
    only: int | None = None
    first: bool = False


async def run_cases(server: PrivateServer, plan: Plan, on_gap: Callable[[], None]) -> Result:
    result = Result()
    if plan.only is not None:
        async with opened(server) as house:
            await _run(house, plan, plan.only, result)
            await _audit(house, result)
        return result
    place, gaps = 0, 1
    while place < gaps and not (plan.first and result.failures):
        cases = result.cases
        async with opened(server) as house:
            gaps = len(house.gaps)
            while place < gaps and result.cases < cases + HOUSE_CASES_MAX:
                await _stand_at(house, plan, place, result)
                place += 1
                on_gap()
            await _audit(house, result)
    return result


async def _audit(house: House, result: Result) -> None:
    report = await audit_dsn(house.ledger.dsn)
    first = 1_001 + result.cases
    result.failures |= {-n: f"audit: {finding}" for n, finding in enumerate(report.findings, first)}


async def _stand_at(house: House, plan: Plan, place: int, result: Result) -> None:
    """Cases at one gap, until enough have stood there."""
    stood = 0
    for draw in range(max(DRAWS_MAX, DRAWS_EACH_MAX * plan.per_gap)):
        if stood == plan.per_gap or (stood and draw >= DRAWS_EACH_MAX * plan.per_gap):
            return
        # Its own number, so that it can be run alone.
        stood += await _run(house, plan, place + draw * len(house.gaps), result)
    if not stood:
        result.missed.append(house.gaps[place])


async def _run(house: House, plan: Plan, number: int, result: Result) -> bool:
    """Whether it stood at its gap."""
    gap = house.gaps[number % len(house.gaps)]
    case = Case(house, gap, random.Random(f"{plan.seed}:{number}"), anything)
    if why := await case.run():
        result.failures[number] = why
    result.cases += 1
    result.reached[gap.name] += case.stood
    result.waited += case.waited
    return case.stood


async def at_every_gap(server: PrivateServer, choose: Choose) -> list[str]:
    """One case at each; what differs."""
    async with opened(server) as house:
        cases = [Case(house, gap, random.Random(gap.name), choose, 0.0) for gap in house.gaps]
        whys = [await case.run() for case in cases]
    return [why for why in whys if why]


def run(plan: Plan, on_gap: Callable[[], None] = lambda: None) -> Result:
    """`on_gap`: at each gap that is done."""
    with private_server() as server:
        return asyncio.run(run_cases(server, plan, on_gap))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-gap", type=int, default=40, help="cases that stand at each gap")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--only", type=int, default=None, help="this case alone")
    parser.add_argument("--first", action="store_true", help="to the first failure")
    arguments = parser.parse_args()
    began = time.monotonic()
    result = run(Plan(arguments.seed, arguments.per_gap, arguments.only, arguments.first))
    sys.stdout.write(
        f"seed {arguments.seed}: {result.cases} cases at {len(+result.reached)} gaps"
        f" ({result.reached.total()} stood there, {result.waited} of the others waited),"
        f" {len(result.failures)} failed, {time.monotonic() - began:.0f} s\n"
    )
    sys.stdout.writelines(f"never reached: {gap}\n" for gap in result.missed)
    for number, why in sorted(result.failures.items())[:10]:
        sys.stdout.write(f"case {number} (--seed {arguments.seed} --only {number}): {why}\n")
    return 1 if result.failures or not result.cases else 0


if __name__ == "__main__":
    sys.exit(main())
