"""Random histories against an independent auditor: duplicates, reordering, clock jumps, extensions,
organisations that share a provider's account, batches of several operations.
"""

import asyncio
import random
from datetime import timedelta

import asyncpg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from penstock.quota.ledger import Extend, Operation, Settle, Void
from support import worlds
from support.auditor import Auditor
from support.configured import enter_settings
from support.ledger import (
    BY_TEST,
    START,
    Ledger,
    cache_hit,
    extend,
    ledger_dsn,
    reserve,
    settle,
    void,
)
from support.postgres import postgres_server
from support.verdicts import differ
from support.worlds import ACCOUNTS_A_WORLD, MODELS, OTHER_PROVIDER, TAGS

__all__ = ["ledger_dsn", "postgres_server"]

AMOUNTS = st.integers(0, 60)
OPERATIONS_MAX = 6
KINDS = ("reserve", "reserve", "reserve", "settle", "void", "extend", "extend", "hit", "again")
JUMPS_SECONDS = (1, 29, 61, 3_600, 86_400, 86_400 * 5, 86_400 * 31)


class LedgerMachine(RuleBasedStateMachine):
    dsn = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.sent: list[Operation] = []
        self.ids: list[str] = []

    @initialize(seed=st.integers(0, 2**32))
    def open(self, seed: int) -> None:
        self.runner.run(self._open(seed))

    async def _open(self, seed: int) -> None:
        self.ledger = await Ledger.open(self.dsn)
        await self.ledger.set_clock(START)
        async with self._connection() as connection:
            ids = await worlds.new_ids(connection, "accounts", ACCOUNTS_A_WORLD)
            world = worlds.make_world(random.Random(seed), ids, START)
            await worlds.install(connection, [world], START)
        self.auditor = Auditor(START, world)

    def _connection(self):
        return _Connected(self.dsn)

    def _id(self, choice: int) -> str:
        """A new one, or one that was used before."""
        if choice < 8 or not self.ids:
            self.ids.append(self.ledger.id())
            return self.ids[-1]
        return self.ids[-1 - (choice % min(len(self.ids), 12))]

    @rule(data=st.data(), size=st.integers(1, OPERATIONS_MAX))
    def batch(self, data: st.DataObject, size: int) -> None:
        operations: list[Operation] = []
        for _ in range(size):
            operation = self._operation(data)
            if operation.reservation_id not in {o.reservation_id for o in operations}:
                operations.append(operation)
        refused_before = {
            id_ for id_, record in self.auditor.records.items() if record.state == "refused"
        }
        self.sent += operations
        outcomes = self.runner.run(self.ledger.apply(*operations))
        verdicts = self.auditor.apply(*operations)
        for operation, outcome, verdict in zip(operations, outcomes, verdicts, strict=True):
            first = operation.reservation_id not in refused_before
            assert "" == differ(operation, outcome, verdict, first=first)

    def _operation(self, data: st.DataObject) -> Operation:
        kind = data.draw(st.sampled_from(KINDS))
        if kind == "again" and self.sent:
            return data.draw(st.sampled_from(self.sent))
        is_new = kind in {"reserve", "hit", "again"}
        id_ = self._id(data.draw(st.integers(0, 12) if is_new else st.integers(7, 40)))
        if kind in {"settle", "void", "extend"}:
            return replace(self._change(kind, id_, data), key_id=data.draw(self._asking()))
        world = self.auditor.world
        key_id = data.draw(st.sampled_from(world.keys))
        if kind == "hit":
            return cache_hit(id_, key_id)
        return reserve(
            id_,
            key_id,
            data.draw(AMOUNTS),
            tokens=data.draw(AMOUNTS),
            pool=data.draw(st.sampled_from(["local", "paid", "paid"])),
            ttl_ms=data.draw(st.sampled_from([1, 60_000, 60_000, 86_400_000])),
            provider=data.draw(st.sampled_from([*world.pools, OTHER_PROVIDER])),
            model=data.draw(st.sampled_from(MODELS)),
            tags=data.draw(st.sampled_from(TAGS)),
        )

    def _change(self, kind: str, id_: str, data: st.DataObject) -> Settle | Void | Extend:
        if kind == "settle":
            return settle(id_, data.draw(AMOUNTS), prompt_tokens=data.draw(AMOUNTS))
        if kind == "void":
            return void(id_)
        return extend(id_, data.draw(st.integers(0, 150)), data.draw(st.integers(0, 120)))

    def _asking(self) -> st.SearchStrategy[int | None]:
        """Mostly whoever may (None: an operator), at times one of the keys."""
        return st.sampled_from([None] * 6 + self.auditor.world.keys)

    @rule(seconds=st.sampled_from(JUMPS_SECONDS))
    def advance(self, seconds: int) -> None:
        self.auditor.advance(timedelta(seconds=seconds))
        self.runner.run(self.ledger.set_clock(self.auditor.now))

    @rule(which=st.integers(0, 40), limit=st.one_of(st.none(), st.integers(0, 300)))
    def change_limit(self, which: int, limit: int | None) -> None:
        budgets = self.auditor.world.budgets
        budget = budgets[which % len(budgets)]
        budget.limit = limit
        self._change_setting(
            budget.account_id,
            "UPDATE budgets SET limit_amount = $1 WHERE id = $2",
            limit,
            budget.id,
        )

    @rule(which=st.integers(0, 7), suspended=st.booleans())
    def suspend(self, which: int, suspended: bool) -> None:
        accounts = self.auditor.world.accounts
        account_id = [id_ for id_, account in accounts.items() if account.kind != "key"][which % 5]
        accounts[account_id].suspended = suspended
        kind = accounts[account_id].kind
        update = self.ledger.accounts.update_account
        self.runner.run(update(BY_TEST, kind, account_id, suspended=suspended))

    @rule(which=st.integers(0, 11))
    def revoke(self, which: int) -> None:
        """Seldom: it is for ever."""
        keys = self.auditor.world.keys
        if which < len(keys):
            self.auditor.world.accounts[keys[which]].revoked = True
            query = "UPDATE api_keys SET revoked_at = ledger_now() WHERE account_id = $1"
            self._change_setting(keys[which], query, keys[which])

    @rule()
    def compare(self) -> None:
        self.runner.run(self._compare())

    def _change_setting(self, account_id: int, query: str, *arguments: object) -> None:
        """As an operator does, with its entry."""
        self.runner.run(self._changed(account_id, query, *arguments))

    async def _changed(self, account_id: int, query: str, *arguments: object) -> None:
        async with self._connection() as connection, connection.transaction():
            await connection.execute(query, *arguments)
            await enter_settings(connection, [account_id])

    async def _compare(self) -> None:
        await self.ledger.store.sweep()
        self.auditor.sweep()
        worlds_ = [self.auditor.world]
        async with self._connection() as connection:
            (balances,) = await worlds.balances(connection, worlds_)
            (folds,) = await worlds.folds(connection, worlds_)
        assert worlds.expected(self.auditor) == balances
        assert worlds.expected(self.auditor, money_only=True) == folds

    def teardown(self) -> None:
        try:
            self.runner.run(self._compare())
            report = self.runner.run(self.ledger.audit())
            assert [] == report.findings
        finally:
            self.runner.run(self.ledger.database.close())
            self.runner.close()


class _Connected:
    """A connection for one piece of work."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def __aenter__(self) -> asyncpg.Connection:
        self._connection = await asyncpg.connect(self._dsn)
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


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
