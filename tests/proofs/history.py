"""One history: routers that crash, a network that loses, repeats, delays and reorders."""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from penstock.quota.ledger import Operation
from penstock.quota.store.ledger_store import Outcome
from proofs.router_actor import Attempt, Client
from support.audited import WorldModel
from support.auditor import Auditor
from support.verdicts import differ

STEPS = 40
"""In which attempts begin and messages are lost; then everything comes to rest."""
WAITS_MAX = 10
"""An attempt has hardly more of them: each is a place to crash."""
TIMEOUT_STEPS = 4


@dataclass(eq=False)
class Actor:
    """One attempt of a router. `crash_at`: the wait at which it dies (None: it does not)."""

    run: Attempt
    crash_at: int | None
    crash_unsent: bool
    waits: int = 0
    waiting_for: Operation | None = None
    until_step: int = 0


@dataclass(frozen=True)
class Message:
    operation: Operation
    sender: Actor | None
    """None: a duplicate, or the sender does not hear the answer."""


@dataclass
class History:
    """A failure is told by an AssertionError that names what differs."""

    number: int
    rng: random.Random
    world: WorldModel
    auditor: Auditor
    actors: list[Actor] = field(default_factory=list)
    flying: dict[int, list[Message]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    refused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.client = Client(self.rng, self.world)

    def is_at_rest(self) -> bool:
        return not self.actors and not self.flying

    def begin_step(self, step: int, now: datetime) -> list[Message]:
        """Time-outs, new attempts; what arrives at the ledger in this step, in this order."""
        if step < STEPS and len(self.actors) < 5 and self.rng.random() < 0.35:
            crash_at = self.rng.choice([None] * WAITS_MAX + list(range(WAITS_MAX)))
            run = self.client.attempt(now)
            actor = Actor(run, crash_at, self.rng.random() < 0.5)
            self.actors.append(actor)
            self._resume(actor, step, first=True)
        for actor in [a for a in self.actors if a.until_step <= step]:
            self._resume(actor, step)
        return self.flying.pop(step, [])

    def answer(self, step: int, message: Message, outcome: Outcome) -> None:
        """The answer to what was delivered; it may get lost on its way."""
        actor = message.sender
        if actor not in self.actors or actor.waiting_for is not message.operation:
            return
        if step < STEPS and self.rng.random() < 0.1:
            self.counts["answers lost"] += 1
            return
        self._resume(actor, step, outcome)

    def check(self, operations: list[Operation], outcomes: list[Outcome]) -> None:
        """What the ledger answered must be what the auditor says, for all of them."""
        verdicts = self.auditor.apply(*operations)
        for operation, outcome, verdict in zip(operations, outcomes, verdicts, strict=True):
            first = operation.reservation_id not in self.refused
            why = differ(operation, outcome, verdict, first=first)
            assert not why, why
            self.counts[verdict[0]] += 1
        self.refused |= {i for i, r in self.auditor.records.items() if r.state == "refused"}

    def check_promise(self) -> None:
        """No bucket above its limit by more than what was taken without being asked first (I1)."""
        unasked: dict[int, int] = defaultdict(int)
        for record in self.auditor.records.values():
            if record.state != "settled" or record.settle is None or record.reserve is None:
                continue
            used, _, _, late = record.answer
            asked = 0 if late and record.reserve.pool != "paid" else record.amount
            for _, balance in record.places:
                unasked[id(balance)] += max(used - asked, 0)
        limits = {b.id: b.limit for b in self.world.budgets if b.unit == "nano_usd"}
        for (budget_id, began), balance in self.auditor.balances.items():
            limit = limits.get(budget_id)
            assert limit is None or balance.used <= limit + unasked[id(balance)], (
                f"budget {budget_id} ({began}): {balance} is over {limit}"
            )

    def _resume(
        self, actor: Actor, step: int, outcome: Outcome | None = None, *, first: bool = False
    ) -> None:
        try:
            operation = next(actor.run) if first else actor.run.send(outcome)
        except StopIteration:
            self.actors.remove(actor)
            return
        crashes = actor.waits == actor.crash_at
        actor.waits += 1
        actor.waiting_for = operation
        actor.until_step = step + (1 if operation is None else TIMEOUT_STEPS)
        if operation is not None and not (crashes and actor.crash_unsent):
            self._send(actor, operation, step)
        if crashes:
            self.counts["crashes"] += 1
            self.actors.remove(actor)
            actor.run.close()

    def _send(self, actor: Actor, operation: Operation, step: int) -> None:
        if step >= STEPS:
            self.flying[step + 1].append(Message(operation, actor))
            return
        if self.rng.random() < 0.12:
            self.counts["messages lost"] += 1
        else:
            late = self.rng.choice([1, 1, 1, 2, 3, 6])
            self.flying[step + late].append(Message(operation, actor))
        if self.rng.random() < 0.12:
            self.counts["messages repeated"] += 1
            self.flying[step + self.rng.choice([1, 2, 8, 20])].append(Message(operation, None))
