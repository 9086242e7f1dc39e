"""Random histories against an independent auditor: duplicates, reordering, clock jumps."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from penstock.quota.ledger import Answer, Operation, Reserve
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.database import Database
from penstock.quota.store.ledger_store import LedgerStore, Outcome
from support.auditor import Auditor, BudgetModel
from support.ledger import START, Ledger, ledger_dsn, reserve, settle, told, void
from support.postgres import postgres_server

__all__ = ["ledger_dsn", "postgres_server"]

AMOUNTS = st.integers(0, 60)
OPERATIONS_MAX = 6


class LedgerMachine(RuleBasedStateMachine):
    dsn = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.sent: list[Operation] = []
        self.ids: list[str] = []
        self.runner.run(self._open())

    async def _open(self) -> None:
        database = await Database.open(self.dsn)
        self.ledger = Ledger(self.dsn, database, LedgerStore(database), AccountStore(database))
        await self.ledger.set_clock(START)
        org_id, team_id, first = await self.ledger.new_path()
        second = (await self._second_key(team_id)).id
        org = [
            BudgetModel("org", org_id, "total", "UTC", 300),
            BudgetModel("org", org_id, "month", "America/Havana", 150),
        ]
        self.keys = [first, second]
        self.team_id = team_id
        self.budgets = [
            *org,
            BudgetModel("team", team_id, "month", "Asia/Tokyo", None),
            BudgetModel("key", first, "total", "UTC", 100),
        ]
        for budget in self.budgets:
            await self._set(budget)
        self.auditor = Auditor(START, {first: self.budgets, second: self.budgets[:3]})

    async def _second_key(self, team_id: int):
        from penstock.quota.account import new_secret
        from support.ledger import OPEN_POLICY

        return await self.ledger.accounts.create_key(team_id, "two", OPEN_POLICY, new_secret())

    async def _set(self, budget: BudgetModel) -> None:
        await self.ledger.budget(
            budget.kind, budget.account_id, budget.limit, budget.window, budget.zone
        )

    def _id(self, choice: int) -> str:
        """A new one, or one that was used before."""
        if choice < 4 or not self.ids:
            self.ids.append(self.ledger.id())
            return self.ids[-1]
        return self.ids[choice % len(self.ids)]

    @rule(data=st.data(), size=st.integers(1, OPERATIONS_MAX))
    def batch(self, data: st.DataObject, size: int) -> None:
        operations: list[Operation] = []
        for _ in range(size):
            kind = data.draw(st.sampled_from(["reserve", "reserve", "settle", "void", "again"]))
            id_ = self._id(data.draw(st.integers(0, 40)))
            if kind == "again" and self.sent:
                operations.append(data.draw(st.sampled_from(self.sent)))
            elif kind == "settle":
                operations.append(settle(id_, data.draw(AMOUNTS)))
            elif kind == "void":
                operations.append(void(id_))
            else:
                changes = {
                    "pool": data.draw(st.sampled_from(["local", "paid"])),
                    "ttl_ms": data.draw(st.sampled_from([1, 60_000, 86_400_000])),
                }
                key_id = data.draw(st.sampled_from(self.keys))
                operations.append(reserve(id_, key_id, data.draw(AMOUNTS), **changes))
        self.sent += operations
        outcomes = self.runner.run(self.ledger.apply(*operations))
        for operation, outcome in zip(operations, outcomes, strict=True):
            reason, facts = self.auditor.apply(operation)
            assert reason == told(outcome), operation
            if reason == "ok":
                assert facts == _facts(operation, outcome)

    @rule(seconds=st.sampled_from([1, 59, 61, 3_600, 86_400, 86_400 * 5, 86_400 * 31]))
    def advance(self, seconds: int) -> None:
        self.auditor.advance(timedelta(seconds=seconds))
        self.runner.run(self.ledger.set_clock(self.auditor.now))

    @rule(which=st.integers(0, 3), limit=st.one_of(st.none(), st.integers(0, 300)))
    def change_limit(self, which: int, limit: int | None) -> None:
        self.budgets[which].limit = limit
        self.runner.run(self._set(replace(self.budgets[which])))

    @rule(suspended=st.booleans())
    def suspend(self, suspended: bool) -> None:
        self.auditor.suspended = suspended
        self.runner.run(
            self.ledger.accounts.set_suspended("team", self.team_id, suspended=suspended)
        )

    @precondition(lambda self: self.auditor.balances)
    @rule()
    def compare_balances(self) -> None:
        self.runner.run(self._compare())

    async def _compare(self) -> None:
        await self.ledger.store.sweep()
        rows = await self.ledger.fetch(
            "SELECT a.kind, a.id, x.kind AS window, b.window_key, b.posted, b.held, b.suspense"
            " FROM buckets b JOIN budgets x ON x.id = b.budget_id"
            " JOIN accounts a ON a.id = x.account_id WHERE a.id = ANY($1)",
            list({budget.account_id for budget in self.budgets}),
        )
        actual = {}
        for row in rows:
            label = "" if row["window"] == "total" else f"{row['window_key']:%Y-%m}"
            place = (row["kind"], row["id"], row["window"], label)
            actual[place] = (row["posted"], row["held"], row["suspense"])
        expected = {
            place: (balance.posted, balance.held, balance.suspense)
            for place, balance in self.auditor.balances.items()
        }
        # A bucket that only ever saw refusals is as good as none.
        zero = (0, 0, 0)
        assert {p: b for p, b in expected.items() if b != zero} == {
            p: b for p, b in actual.items() if b != zero
        }

    def teardown(self) -> None:
        try:
            self.runner.run(self._compare())
            report = self.runner.run(self.ledger.audit())
            assert report.ok, [check for check in report.checks if check.findings]
        finally:
            self.runner.run(self.ledger.database.close())
            self.runner.close()


def _facts(operation: Operation, outcome: Outcome) -> tuple[object, ...]:
    assert isinstance(outcome, Answer)
    if isinstance(operation, Reserve):
        return (outcome.expires_at, outcome.remaining_nano_usd)
    return (
        outcome.posted_nano_usd,
        outcome.released_nano_usd,
        outcome.overage,
        outcome.late,
    )


def test_the_ledger_agrees_with_an_independent_auditor(ledger_dsn: str) -> None:
    LedgerMachine.dsn = ledger_dsn
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            database=None,
            print_blob=True,
            # Shrinking takes longer than a test may; a history of 25 steps can be read as it is.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
