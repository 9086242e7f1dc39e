"""Two quota processes' real `Batcher` under the simulation: lanes, batches, what is set apart.

Everything that a Batcher asks of its store waits here for its turn, and the turns are dealt out by
the chunk's randomness, one at a time: so a history can be replayed, with its whole chunk. A turn
may end as the store's does: answered, killed before or after its commit, or busy since somebody
locks rows. A process may be killed at any turn: what it had queued and remembered is lost.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.core import errors
from penstock.quota.batcher import Batcher, Waiting
from penstock.quota.store.database import BUSY
from penstock.quota.store.ledger_store import LedgerStore, Outcome, Timed
from proofs.history import History, Message
from support.clock import HandClock

PROCESSES = 2
FATES = ["answered"] * 20 + ["killed before", "killed after"] + ["busy"] * 3
TOGETHER = 12
"""Messages that arrive between two turns."""
PROCESS_LIVES_TURNS = 400
"""On average: about as many turns as its messages of a few steps take."""
STILL_LOOKS = 12
"""Of the event loop without a new turn: then everybody waits for one, or is done."""
Arrived = list[tuple[History, list[Message]]]
Applied = Callable[[Sequence[Timed], list[Outcome]], None]


@dataclass(eq=False)
class Turn:
    """What one process asks of the store."""

    process: "Process"
    work: Callable[[], Awaitable[Any]]
    batch: Sequence[Timed]
    done: "asyncio.Future[Any]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(eq=False)
class Process:
    """A quota process: its Batcher, over a store that it has to wait for (`batcher.Applies`)."""

    store: LedgerStore
    clock: HandClock
    turns: list[Turn]
    tasks: "list[asyncio.Task[None]]" = field(default_factory=list)
    untold: list[Waiting] = field(default_factory=list)
    is_dead: bool = False
    graves: list[Turn] = field(default_factory=list)
    """What waits for a turn of these must not be collected: the event loop would complain."""

    def __post_init__(self) -> None:
        self.batcher = Batcher(self, self.clock)

    async def apply(self, batch: Sequence[Timed]) -> list[Outcome]:
        return await self._turn(lambda: self.store.apply(batch), batch)

    async def org_ids(self, key_ids: Sequence[int]) -> dict[int, int]:
        return await self._turn(lambda: self.store.org_ids(key_ids), ())

    async def _turn(self, work: Callable[[], Awaitable[Any]], batch: Sequence[Timed]) -> Any:
        turn = Turn(self, work, batch)
        (self.graves if self.is_dead else self.turns).append(turn)
        return await turn.done

    def submit(self, waiting: Waiting) -> None:
        self.untold.append(waiting)
        self.tasks.append(asyncio.create_task(self._submit(waiting)))

    async def _submit(self, waiting: Waiting) -> None:
        try:
            await self.batcher.submit([waiting])
        except errors.Unavailable as error:
            waiting.tell(error)

    def kill(self) -> None:
        """It gets no turn any more: all that it was about to do stands still for ever."""
        self.is_dead = True
        self.graves += (turn for turn in self.turns if turn.process is self)
        for task in self.tasks:
            task.cancel()


class Batched:
    """The quota side of a chunk. `applied`: told of each batch in the order of their commits."""

    def __init__(
        self, store: LedgerStore, dying: LedgerStore, rng: random.Random, applied: Applied
    ) -> None:
        self.store = store
        self.dying = dying
        self.rng = rng
        self.applied = applied
        self.counts: Counter[str] = Counter()
        self.clock = HandClock(0.0)
        self.turns: list[Turn] = []
        self.dead: list[Process] = []
        self.processes = [self._process() for _ in range(PROCESSES)]

    def _process(self) -> Process:
        return Process(self.store, self.clock, self.turns)

    async def deliver(
        self, arrived: Arrived, *, tell: Callable[[History, Message, Outcome], None], quiet: bool
    ) -> None:
        """All messages of a step, until each is told or lost. `quiet`: nothing goes wrong."""
        coming = [(history, m) for history, messages in arrived for m in messages]
        while (turn := await self._next()) or coming:
            # They trickle in, while others are in flight.
            for history, message in coming[:TOGETHER]:
                self._submit(history, message, tell)
            del coming[:TOGETHER]
            if turn is None:
                continue
            if not quiet and self.rng.randrange(PROCESS_LIVES_TURNS) == 0:
                self._kill(turn.process)
            else:
                await self._take(turn, "answered" if quiet else self.rng.choice(FATES))
        for process in self.processes:
            await asyncio.gather(*process.tasks)
            process.tasks.clear()
            left = [one.operation for one in process.untold if one.wanted()]
            assert not left, f"nothing goes on, and nobody is told of {left}"
            process.untold.clear()

    def _submit(
        self, history: History, message: Message, tell: Callable[[History, Message, Outcome], None]
    ) -> None:
        def is_wanted() -> bool:
            return message.sender is None or message.sender in history.actors

        process = self.rng.choice(self.processes)

        def told(outcome: Outcome) -> None:
            process.untold.remove(waiting)
            assert not isinstance(outcome, errors.Internal), outcome
            # Unavailable is no answer: the router asks again.
            if not isinstance(outcome, errors.Unavailable):
                tell(history, message, outcome)

        waiting = Waiting(message.operation, None, told, is_wanted)
        process.submit(waiting)

    async def _next(self) -> Turn | None:
        """One of those that wait, when all wait."""
        still = 0
        while still < STILL_LOOKS:
            before = len(self.turns)
            await asyncio.sleep(0)
            still = still + 1 if len(self.turns) == before else 0
        return self.turns.pop(self.rng.randrange(len(self.turns))) if self.turns else None

    async def _take(self, turn: Turn, fate: str) -> None:
        self.counts[f"turns {fate}" if fate != "answered" else "turns"] += 1
        if fate == "busy":
            turn.done.set_exception(errors.Unavailable("locked", reason=BUSY))
        elif fate == "killed before":
            if turn.batch:
                await self._roll_back(turn.batch)
            turn.done.set_exception(errors.Unavailable("away", reason="LEDGER_UNAVAILABLE"))
        else:
            result = await turn.work()
            if turn.batch:
                self.applied(turn.batch, result)
            if fate == "answered":
                turn.done.set_result(result)
            else:
                turn.done.set_exception(errors.Unavailable("away", reason="LEDGER_UNAVAILABLE"))

    async def _roll_back(self, batch: Sequence[Timed]) -> None:
        try:
            await self.dying.apply(batch)
        except errors.Unavailable:
            return
        raise AssertionError("a dying store answered")

    def _kill(self, process: Process) -> None:
        self.counts["quota processes killed"] += 1
        process.kill()
        self.dead.append(process)
        self.turns[:] = [turn for turn in self.turns if turn.process is not process]
        self.processes[self.processes.index(process)] = self._process()
