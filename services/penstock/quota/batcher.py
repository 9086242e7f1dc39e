"""Micro-batches: what came while the last batch was in flight is the next.

Organisations are dealt out to a few lanes, and a lane has one batch in flight: one organisation's
operations apply in the order in which they came, and its rows are never fought over within this
process. An organisation whose rows somebody else keeps locked gets a lane of its own for a while,
so that it stalls the others once, for no longer than the lock time-out.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.core import errors
from penstock.core.clock import Clock
from penstock.quota.ledger import Answer, Operation, Reserve
from penstock.quota.refusals import too_late
from penstock.quota.store.database import BUSY
from penstock.quota.store.ledger_store import Outcome, Timed

logger = logging.getLogger(__name__)

LANES = 4
"""Batches in flight: while one is being committed, the next are applied."""
BATCH_OPERATIONS_MAX = 512
"""A larger batch holds its locks longer than it saves in commits."""
LANE_OPERATIONS_MAX = 16_384
"""Waiting in one lane: a second or two of work, more would miss its deadlines anyway."""
OPERATIONS_MAX = 32_768
"""Waiting in this process, over all lanes."""
REMEMBERED_MAX = 200_000
"""Organisations of keys and of recent reservations, so that a lane is known without asking."""
FULL_RETRY_SECONDS = 0.25
APART_SECONDS = 30.0
"""How long an organisation whose rows were locked by somebody else has a lane of its own."""

Tell = Callable[[Outcome], None]


class Applies(Protocol):
    """What is batched into: `LedgerStore`."""

    async def apply(self, batch: Sequence[Timed]) -> list[Outcome]: ...

    async def org_ids(
        self, key_ids: Sequence[int], reservation_ids: Sequence[str]
    ) -> tuple[dict[int, int], dict[str, int]]: ...


def _always() -> bool:
    return True


@dataclass(slots=True)
class Waiting:
    """An operation in the queue.

    Attributes:
        operation: To apply.
        left_ms: How long its caller still waits, when it is submitted; None: for ever.
        tell: Called once, with the answer or with the error.
        wanted: Whether somebody still waits for it.
    """

    operation: Operation
    left_ms: int | None
    tell: Tell
    wanted: Callable[[], bool] = _always
    org_id: int = 0
    deadline_monotonic_seconds: float | None = None


@dataclass(slots=True)
class _Lane:
    waiting: deque[Waiting] = field(default_factory=deque)
    task: "asyncio.Task[None] | None" = None


class _Remembered:
    """The organisations of the ids that were used last."""

    def __init__(self) -> None:
        self._orgs: OrderedDict[int | str, int] = OrderedDict()

    def get(self, id_: int | str) -> int | None:
        return self._orgs.get(id_)

    def put(self, id_: int | str, org_id: int) -> None:
        self._orgs[id_] = org_id
        if len(self._orgs) > REMEMBERED_MAX:
            self._orgs.popitem(last=False)


class Batcher:
    """Takes operations, and tells the answer of each."""

    def __init__(self, store: Applies, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lanes: dict[int | str, _Lane] = {}
        self._remembered = _Remembered()
        self._waiting = 0
        self._apart_until: dict[int, float] = {}

    async def apply(self, operation: Operation, left_ms: int | None = None) -> Answer:
        """One operation.

        Raises:
            PenstockError: why it was refused, or that it is not known whether it was applied.
        """
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def tell(outcome: Outcome) -> None:
            if not answer.done():
                answer.set_result(outcome)

        await self.submit([Waiting(operation, left_ms, tell, lambda: not answer.cancelled())])
        outcome = await answer
        if isinstance(outcome, errors.PenstockError):
            raise outcome
        return outcome

    async def submit(self, operations: Sequence[Waiting]) -> None:
        """Queues operations; each is told once.

        Raises:
            Unavailable: the ledger is away, none is queued and none will be told.
        """
        now = self._clock.monotonic_seconds()
        await self._find_orgs(operations)
        for one in operations:
            if one.left_ms is not None:
                one.deadline_monotonic_seconds = now + one.left_ms / 1000
            self._queue(one)

    async def drain(self) -> None:
        """Returns when everything that was queued has been told."""
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        await asyncio.gather(*tasks)

    def _queue(self, one: Waiting) -> None:
        lane_id = self._lane_of(one.org_id)
        lane = self._lanes.setdefault(lane_id, _Lane())
        if len(lane.waiting) >= LANE_OPERATIONS_MAX or self._waiting >= OPERATIONS_MAX:
            one.tell(
                errors.CapacityExhausted(
                    "too many operations wait for the ledger; try again",
                    reason="LEDGER_QUEUE_FULL",
                    retry_after_seconds=FULL_RETRY_SECONDS,
                )
            )
            return
        lane.waiting.append(one)
        self._waiting += 1
        if lane.task is None:
            lane.task = asyncio.create_task(self._run(lane_id, lane))

    def _lane_of(self, org_id: int) -> int | str:
        until = self._apart_until.get(org_id)
        if until is None:
            return org_id % LANES
        if until <= self._clock.monotonic_seconds():
            # What it still has in its own lane goes first.
            if _apart(org_id) in self._lanes:
                return _apart(org_id)
            del self._apart_until[org_id]
            return org_id % LANES
        return _apart(org_id)

    async def _run(self, lane_id: int | str, lane: _Lane) -> None:
        while lane.waiting:
            batch = self._take(lane)
            if batch:
                await self._apply(lane, batch)
        lane.task = None
        del self._lanes[lane_id]

    def _take(self, lane: _Lane) -> list[tuple[Waiting, Timed]]:
        """The next batch, without the reserves whose caller has stopped waiting. It has each
        reservation once.
        """
        now = self._clock.monotonic_seconds()
        batch: list[tuple[Waiting, Timed]] = []
        ids: set[str] = set()
        while lane.waiting and len(batch) < BATCH_OPERATIONS_MAX:
            one = lane.waiting[0]
            operation = one.operation
            if operation.reservation_id in ids:
                break
            lane.waiting.popleft()
            self._waiting -= 1
            deadline = one.deadline_monotonic_seconds
            left_ms = None if deadline is None else int((deadline - now) * 1000)
            # A settle or void is applied even so: it is true, whoever waits for it.
            if isinstance(operation, Reserve):
                if not one.wanted():
                    continue
                if left_ms is not None and left_ms <= 0:
                    one.tell(too_late(operation))
                    continue
            ids.add(operation.reservation_id)
            batch.append((one, Timed(operation, left_ms)))
        return batch

    async def _apply(self, lane: _Lane, batch: list[tuple[Waiting, Timed]]) -> None:
        outcomes: Sequence[Outcome]
        try:
            outcomes = await self._store.apply([timed for _, timed in batch])
        except errors.PenstockError as error:
            if error.reason == BUSY and self._set_apart(lane, [one for one, _ in batch]):
                return
            outcomes = [error] * len(batch)
        except Exception as error:  # every caller gets an answer, the lane goes on
            logger.exception("a batch failed")
            outcomes = [errors.Internal(f"the ledger failed ({type(error).__name__})")] * len(batch)
        for (one, _), outcome in zip(batch, outcomes, strict=True):
            one.tell(outcome)

    def _set_apart(self, lane: _Lane, batch: list[Waiting]) -> bool:
        """Somebody locks rows of one organisation. Which one shows when each goes on by itself:
        then this lane need not wait once more. Whether they do.
        """
        now = self._clock.monotonic_seconds()
        orgs = {one.org_id for one in batch}
        if len(orgs) == 1:
            self._apart_until[next(iter(orgs))] = now + APART_SECONDS
            return False
        batch += (one for one in lane.waiting if one.org_id in orgs)
        left = [one for one in lane.waiting if one.org_id not in orgs]
        self._waiting -= len(lane.waiting) - len(left)
        lane.waiting = deque(left)
        for org_id in orgs:
            # Back where it was as soon as this is done, if it is not the locked one.
            self._apart_until[org_id] = now
            self._lanes.setdefault(_apart(org_id), _Lane())
        for one in batch:
            self._queue(one)
        return True

    async def _find_orgs(self, operations: Sequence[Waiting]) -> None:
        get, put = self._remembered.get, self._remembered.put
        keys: set[int] = set()
        reservations: set[str] = set()
        strangers = []
        for one in operations:
            operation = one.operation
            if isinstance(operation, Reserve):
                org_id = get(operation.key_id)
                if org_id is None:
                    keys.add(operation.key_id)
                    strangers.append(one)
                    continue
                put(operation.reservation_id, org_id)
            else:
                org_id = get(operation.reservation_id)
                if org_id is None:
                    reservations.add(operation.reservation_id)
                    strangers.append(one)
                    continue
            one.org_id = org_id
        if strangers:
            await self._ask_orgs(strangers, keys, reservations)

    async def _ask_orgs(
        self, strangers: Sequence[Waiting], keys: set[int], reservations: set[str]
    ) -> None:
        key_orgs, reservation_orgs = await self._store.org_ids(sorted(keys), sorted(reservations))
        for key_id, org_id in key_orgs.items():
            self._remembered.put(key_id, org_id)
        for reservation_id, org_id in reservation_orgs.items():
            self._remembered.put(reservation_id, org_id)
        for one in strangers:
            operation = one.operation
            if isinstance(operation, Reserve) and operation.key_id in key_orgs:
                self._remembered.put(operation.reservation_id, key_orgs[operation.key_id])
        for one in strangers:
            # Ids that nobody knows: any lane will do, but always the same one for one id.
            known = self._remembered.get(one.operation.reservation_id)
            one.org_id = one.operation.id_unix_ms % LANES if known is None else known


def _apart(org_id: int) -> str:
    """The lane of one organisation alone."""
    return f"apart {org_id}"
