"""Seeded histories over the real ledger (LEDGER, "How it is proven", 4).

The real LedgerStore and the real apply_batch over a real PostgreSQL; routers are
`router_actor.Client`, the network and the clock are simulated. Histories run in lockstep in one
database, each with organisations and a pool of its own: what they send in one step goes into common
batches. A store that is killed before it commits is a transaction that is rolled back; one that is
killed after it is an answer that nobody hears.

    PYTHONPATH=tests python -m proofs.simulation --histories 10000 --seed 7
    PYTHONPATH=tests python -m proofs.simulation --seed 7 --only 1234     # replays that history
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import asyncpg

from penstock.core import errors
from penstock.quota.audit import audit_dsn
from penstock.quota.ledger import Operation
from penstock.quota.store.database import Database
from penstock.quota.store.ledger_store import LedgerStore, Outcome, Timed
from proofs.batched import Batched
from proofs.history import STEPS, History, Message
from proofs.servers import private_server
from support import worlds
from support.auditor import Auditor
from support.ledger import START, clocked_database
from support.worlds import ACCOUNTS_A_WORLD

CHUNK = 200
"""Histories in lockstep. They share one clock, so a replay replays the clock of its chunk."""
BATCHED_EACH = 4
"""One chunk in so many goes through the real Batcher of two quota processes."""
CALL_OPERATIONS_MAX = 100
"""A batch resolves at most 500 abandoned holds: so few histories have no more."""
STEPS_MAX = STEPS + 400
JUMPS_SECONDS = (0, 1, 1, 2, 5, 10, 10, 15, 30)
LEAPS_SECONDS = (61, 3_600, 86_400, 8 * 86_400, 31 * 86_400)


class _DyingDatabase:
    """Killed after the statement and before its commit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            finally:
                await transaction.rollback()
            raise errors.Unavailable("killed before its commit", reason="LEDGER_UNAVAILABLE")


@dataclass
class Result:
    """Of a chunk. `failures`: what went wrong, by history."""

    histories: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)


class Chunk:
    """Histories in lockstep."""

    def __init__(self, dsn: str, seed: int, numbers: Sequence[int]) -> None:
        self.dsn = dsn
        self.seed = seed
        self.numbers = numbers
        self.now = START
        self.clock = random.Random(f"{seed}:clock:{numbers[0] // CHUNK}")
        self.histories: list[History] = []
        self.result = Result(histories=len(numbers))
        self.batched: Batched | None = None
        self.senders: dict[str, History] = {}

    async def run(self) -> Result:
        self.database = await Database.open(self.dsn)
        self.store = LedgerStore(self.database)
        self.dying = LedgerStore(_DyingDatabase(self.database))
        if self.numbers[0] // CHUNK % BATCHED_EACH == 1:
            self.batched = Batched(self.store, self.dying, self.clock, self._applied)
        try:
            await self._begin()
            for step in range(STEPS_MAX):
                await self._step(step)
                if step > STEPS and all(h.is_at_rest() for h in self.histories):
                    break
            await self._finish()
            if self.batched is not None:
                self.result.counts.update(self.batched.counts)
        finally:
            await self.database.close()
        return self.result

    async def _begin(self) -> None:
        await self._set_clock(START)
        connection = await asyncpg.connect(self.dsn)
        for number in self.numbers:
            rng = random.Random(f"{self.seed}:{number}")
            ids = await worlds.new_ids(connection, "accounts", ACCOUNTS_A_WORLD)
            world = worlds.make_world(rng, ids, START)
            self.histories.append(History(number, rng, world, Auditor(START, world)))
        await worlds.install(connection, [h.world for h in self.histories], START)
        await connection.close()

    async def _set_clock(self, now: datetime) -> None:
        self.now = now
        async with self.database.connection() as connection:
            await connection.execute("UPDATE test_clock SET at = $1", now)

    async def _step(self, step: int) -> None:
        leaps = self.clock.random() < 0.06
        seconds = self.clock.choice(LEAPS_SECONDS if leaps else JUMPS_SECONDS)
        await self._set_clock(self.now + timedelta(seconds=seconds))
        arrived: list[tuple[History, list[Message]]] = []
        for history in self.histories:
            history.auditor.advance(timedelta(seconds=seconds))
            if messages := history.begin_step(step, self.now):
                arrived.append((history, messages))
                self.senders |= {m.operation.reservation_id: history for m in messages}
        if self.batched is not None:
            self.batched.clock.now = (self.now - START).total_seconds()
            await self.batched.deliver(
                arrived,
                tell=lambda history, message, outcome: history.answer(step, message, outcome),
                quiet=step >= STEPS,
            )
        while arrived and self.batched is None:
            wave, arrived = _split(arrived)
            fates: dict[str, list[tuple[History, list[Message]]]] = {}
            for history, messages in wave:
                # Its place in the wave must not decide: a replay has it alone.
                fate = "answered"
                if step < STEPS:
                    fate = history.rng.choice(["answered"] * 18 + ["killed before", "killed after"])
                fates.setdefault(fate, []).append((history, messages))
            for fate, calls in sorted(fates.items()):
                for call in _calls(calls):
                    await self._call(step, fate, call)
        if self.clock.random() < 0.1:
            await self._sweep()

    async def _call(self, step: int, fate: str, call: list[tuple[History, list[Message]]]) -> None:
        batch = [Timed(m.operation) for _, messages in call for m in messages]
        self.result.counts["operations"] += len(batch)
        self.result.counts["batches"] += 1
        if fate == "killed before":
            self.result.counts["store killed before its commit"] += 1
            with contextlib.suppress(errors.Unavailable):
                await self.dying.apply(batch)
            return
        outcomes = iter(await self.store.apply(batch))
        self.result.counts["store killed after its commit"] += fate == "killed after"
        for history, messages in call:
            own = [next(outcomes) for _ in messages]
            operations = [message.operation for message in messages]
            self._guard(history, partial(history.check, operations, own))
            if fate == "answered":
                for message, outcome in zip(messages, own, strict=True):
                    history.answer(step, message, outcome)

    def _applied(self, batch: Sequence[Timed], outcomes: list[Outcome]) -> None:
        """In a Batcher's batch are operations of many histories; each has its own auditor."""
        self.result.counts["operations"] += len(batch)
        self.result.counts["batches"] += 1
        self.result.counts["operations through the Batcher"] += len(batch)
        own: dict[int, tuple[list[Operation], list[Outcome]]] = {}
        for timed, outcome in zip(batch, outcomes, strict=True):
            history = self.senders[timed.operation.reservation_id]
            operations, told = own.setdefault(history.number, ([], []))
            operations.append(timed.operation)
            told.append(outcome)
        for operations, told in own.values():
            history = self.senders[operations[0].reservation_id]
            self._guard(history, partial(history.check, operations, told))

    async def _sweep(self) -> None:
        await self.store.sweep()
        async with self.database.connection() as connection:
            # A sweep lapses a few hundred grants; of so many worlds more may have ended.
            while await connection.fetchval("SELECT lapse_grants()"):
                pass
        for history in self.histories:
            history.auditor.sweep()

    async def _finish(self) -> None:
        """Everything expires, everything is swept: then the books must agree."""
        await self._set_clock(self.now + timedelta(days=2))
        for history in self.histories:
            history.auditor.advance(timedelta(days=2))
        await self._sweep()
        connection = await asyncpg.connect(self.dsn)
        models = [h.world for h in self.histories]
        balances = await worlds.balances(connection, models)
        folds = await worlds.folds(connection, models)
        await connection.close()
        for history, balance, fold in zip(self.histories, balances, folds, strict=True):
            self._guard(history, partial(_agree, history, balance, fold))
            self._guard(history, history.check_promise)
            self.result.counts.update(history.counts)

    def _guard(self, history: History, check: Callable[[], None]) -> None:
        """Its first failure is told; the others of the chunk go on."""
        try:
            check()
        except AssertionError as error:
            self.result.failures.setdefault(history.number, str(error))


def _agree(history: History, balances: worlds.Book, folds: worlds.Book) -> None:
    expected = worlds.expected(history.auditor)
    assert expected == balances, f"balances: {worlds.difference(expected, balances)}"
    expected = worlds.expected(history.auditor, money_only=True)
    assert expected == folds, f"entries: {worlds.difference(expected, folds)}"


def _split(
    arrived: list[tuple[History, list[Message]]],
) -> tuple[list[tuple[History, list[Message]]], list[tuple[History, list[Message]]]]:
    """A batch has each id once: up to the first repeat of each history, and the others."""
    wave, rest = [], []
    for history, messages in arrived:
        ids = [m.operation.reservation_id for m in messages]
        cut = next((n for n, id_ in enumerate(ids) if id_ in ids[:n]), len(ids))
        wave.append((history, messages[:cut]))
        if messages[cut:]:
            rest.append((history, messages[cut:]))
    return wave, rest


def _calls(
    parts: list[tuple[History, list[Message]]],
) -> list[list[tuple[History, list[Message]]]]:
    calls: list[list[tuple[History, list[Message]]]] = []
    size = CALL_OPERATIONS_MAX
    for history, messages in parts:
        size += len(messages)
        if size > CALL_OPERATIONS_MAX:
            calls.append([])
            size = len(messages)
        calls[-1].append((history, messages))
    return calls


def run_chunks(dsn: str, seed: int, chunks: Sequence[Sequence[int]], results: Any) -> None:
    """In a process of its own: tells each chunk's result, and at last what the audit says."""
    try:
        for numbers in chunks:
            results.put(asyncio.run(Chunk(dsn, seed, numbers).run()))
        report = asyncio.run(audit_dsn(dsn))
        findings = report.findings
        results.put(Result(failures=dict(enumerate(findings, -len(findings)))))
    except Exception:  # noqa: BLE001 - it is told to who waits
        results.put(Result(failures={-1: traceback.format_exc()}))


def simulate(
    histories: int, seed: int, *, workers: int = 2, on_chunk: Callable[[Result], None]
) -> Result:
    """All of them; stops early for nothing. `on_chunk` hears of each chunk as it is done."""
    chunks = [range(n, min(n + CHUNK, histories)) for n in range(0, histories, CHUNK)]
    context = multiprocessing.get_context("spawn")
    total = Result()
    with private_server() as server:
        results = context.Queue()
        processes = []
        for n in range(min(workers, len(chunks))):
            dsn = asyncio.run(clocked_database(server))
            arguments = (dsn, seed, chunks[n::workers], results)
            processes.append(context.Process(target=run_chunks, args=arguments))
        for process in processes:
            process.start()
        for _ in range(len(chunks) + len(processes)):
            result = results.get()
            total.histories += result.histories
            total.counts.update(result.counts)
            total.failures |= result.failures
            on_chunk(result)
            if -1 in result.failures:
                break
        for process in processes:
            process.join(30)
            process.kill()
    return total


def replay(number: int, seed: int, histories: int) -> Result:
    """One history alone, on its chunk's clock; of a Batcher's chunk all, who share its batches."""
    first = number - number % CHUNK
    is_batched = number // CHUNK % BATCHED_EACH == 1
    numbers = range(first, min(first + CHUNK, histories)) if is_batched else [number]
    with private_server() as server:
        dsn = asyncio.run(clocked_database(server))
        return asyncio.run(Chunk(dsn, seed, numbers).run())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--only", type=int, default=None, help="replay this history alone")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if arguments.seed is None else arguments.seed
    began = time.monotonic()
    if arguments.only is not None:
        result = replay(arguments.only, seed, arguments.histories)
    else:
        result = simulate(arguments.histories, seed, on_chunk=lambda _: None)
    sys.stdout.write(f"seed {seed}: {result.histories} histories, {len(result.failures)} failed,")
    sys.stdout.write(f" {time.monotonic() - began:.0f} s\n")
    for name, count in sorted(result.counts.items()):
        sys.stdout.write(f"  {name}: {count}\n")
    for number, why in sorted(result.failures.items())[:10]:
        sys.stdout.write(f"history {number} (--seed {seed} --only {number}): {why}\n")
    return 1 if result.failures or not result.histories else 0


if __name__ == "__main__":
    sys.exit(main())
