"""Micro-batches by organisation: what came while its last batch was in flight is its next.

One batch of an organisation runs at a time, so its operations apply in the order in which they came
and its rows are never fought over within this process; organisations do not wait for each other.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.core import errors
from penstock.core.clock import Clock
from penstock.quota.ledger import Answer, Operation, Reserve, refused
from penstock.quota.store.ledger_store import Outcome, Timed

logger = logging.getLogger(__name__)

BATCH_OPERATIONS_MAX = 256
"""A larger batch holds its locks longer than it saves in commits."""
LANE_OPERATIONS_MAX = 4_096
"""Waiting for one organisation: some seconds of work, more would miss its deadlines anyway."""
OPERATIONS_MAX = 32_768
"""Waiting in this process, over all organisations."""
REMEMBERED_MAX = 200_000
"""Organisations of keys and of recent reservations, so that a lane is known without asking."""
FULL_RETRY_SECONDS = 0.25
_STRANGER_LANES = 8


class Applies(Protocol):
    """What is batched into: `LedgerStore`."""

    async def apply(self, batch: Sequence[Timed]) -> list[Outcome]: ...

    async def org_ids(
        self, key_ids: Sequence[int], reservation_ids: Sequence[str]
    ) -> tuple[dict[int, int], dict[str, int]]: ...


@dataclass(slots=True)
class _Waiting:
    operation: Operation
    deadline_monotonic_seconds: float | None
    answer: "asyncio.Future[Answer]"


@dataclass(slots=True)
class _Lane:
    waiting: deque[_Waiting] = field(default_factory=deque)
    task: "asyncio.Task[None] | None" = None


class _Remembered:
    """The organisations of the ids that were used last."""

    def __init__(self) -> None:
        self._orgs: OrderedDict[int | str, int] = OrderedDict()

    def get(self, id_: int | str) -> int | None:
        org_id = self._orgs.get(id_)
        if org_id is not None:
            self._orgs.move_to_end(id_)
        return org_id

    def put(self, id_: int | str, org_id: int) -> None:
        self._orgs[id_] = org_id
        self._orgs.move_to_end(id_)
        if len(self._orgs) > REMEMBERED_MAX:
            self._orgs.popitem(last=False)


class Batcher:
    """Takes operations, answers each by a future."""

    def __init__(self, store: Applies, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lanes: dict[int, _Lane] = {}
        self._remembered = _Remembered()
        self._waiting = 0

    async def apply(self, operation: Operation, left_ms: int | None = None) -> Answer:
        """One operation.

        Raises:
            PenstockError: why it was refused, or that it is not known whether it was applied.
        """
        (answer,) = await self.submit([(operation, left_ms)])
        return await answer

    async def submit(
        self, operations: Sequence[tuple[Operation, int | None]]
    ) -> "list[asyncio.Future[Answer]]":
        """Queues operations, with the ms that each caller still waits; a future for each answer.

        Raises:
            Unavailable: the ledger is away, none is queued.
        """
        now = self._clock.monotonic_seconds()
        lanes = await self._lanes_of([operation for operation, _ in operations])
        answers = []
        for (operation, left_ms), lane_id in zip(operations, lanes, strict=True):
            deadline = None if left_ms is None else now + left_ms / 1000
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            # A caller that has gone must not leave a warning behind.
            answer.add_done_callback(_retrieve)
            answers.append(answer)
            self._queue(lane_id, _Waiting(operation, deadline, answer))
        return answers

    async def drain(self) -> None:
        """Returns when everything that was queued has its answer."""
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        await asyncio.gather(*tasks)

    def _queue(self, lane_id: int, waiting: _Waiting) -> None:
        lane = self._lanes.setdefault(lane_id, _Lane())
        if len(lane.waiting) >= LANE_OPERATIONS_MAX or self._waiting >= OPERATIONS_MAX:
            waiting.answer.set_exception(
                errors.CapacityExhausted(
                    "too many operations wait for this account; try again",
                    reason="LEDGER_QUEUE_FULL",
                    retry_after_seconds=FULL_RETRY_SECONDS,
                )
            )
            return
        lane.waiting.append(waiting)
        self._waiting += 1
        if lane.task is None:
            lane.task = asyncio.create_task(self._run(lane_id, lane))

    async def _run(self, lane_id: int, lane: _Lane) -> None:
        while lane.waiting:
            batch = self._take(lane)
            if batch:
                await self._apply(batch)
        lane.task = None
        del self._lanes[lane_id]

    def _take(self, lane: _Lane) -> list[tuple[_Waiting, Timed]]:
        """The next batch, without the reserves whose caller has stopped waiting."""
        now = self._clock.monotonic_seconds()
        batch: list[tuple[_Waiting, Timed]] = []
        while lane.waiting and len(batch) < BATCH_OPERATIONS_MAX:
            one = lane.waiting.popleft()
            self._waiting -= 1
            deadline = one.deadline_monotonic_seconds
            left_ms = None if deadline is None else int((deadline - now) * 1000)
            # A settle or void is applied even so: it is true, whoever waits for it.
            if isinstance(one.operation, Reserve):
                if one.answer.cancelled():
                    continue
                if left_ms is not None and left_ms <= 0:
                    one.answer.set_exception(refused("DEADLINE_EXCEEDED", one.operation, None))
                    continue
            batch.append((one, Timed(one.operation, left_ms)))
        return batch

    async def _apply(self, batch: list[tuple[_Waiting, Timed]]) -> None:
        outcomes: Sequence[Outcome]
        try:
            outcomes = await self._store.apply([timed for _, timed in batch])
        except errors.PenstockError as error:
            outcomes = [error] * len(batch)
        except Exception as error:  # every caller gets an answer, the lane goes on
            logger.exception("a batch failed")
            outcomes = [errors.Internal(f"the ledger failed ({type(error).__name__})")] * len(batch)
        for (one, _), outcome in zip(batch, outcomes, strict=True):
            if one.answer.done():
                continue
            if isinstance(outcome, Answer):
                one.answer.set_result(outcome)
            else:
                one.answer.set_exception(outcome)

    async def _lanes_of(self, operations: Sequence[Operation]) -> list[int]:
        keys, reservations = set(), set()
        for operation in operations:
            if isinstance(operation, Reserve):
                org_id = self._remembered.get(operation.key_id)
                if org_id is None:
                    keys.add(operation.key_id)
                else:
                    self._remembered.put(operation.reservation_id, org_id)
            elif self._remembered.get(operation.reservation_id) is None:
                reservations.add(operation.reservation_id)
        if keys or reservations:
            await self._remember(operations, keys, reservations)
        return [self._lane_of(operation) for operation in operations]

    async def _remember(
        self, operations: Sequence[Operation], keys: set[int], reservations: set[str]
    ) -> None:
        reserved = {o.reservation_id for o in operations if isinstance(o, Reserve)}
        unknown = sorted(reservations - reserved)
        key_orgs, reservation_orgs = await self._store.org_ids(sorted(keys), unknown)
        for key_id, org_id in key_orgs.items():
            self._remembered.put(key_id, org_id)
        for reservation_id, org_id in reservation_orgs.items():
            self._remembered.put(reservation_id, org_id)
        for operation in operations:
            if isinstance(operation, Reserve) and operation.key_id in key_orgs:
                self._remembered.put(operation.reservation_id, key_orgs[operation.key_id])

    def _lane_of(self, operation: Operation) -> int:
        org_id = self._remembered.get(operation.reservation_id)
        if org_id is not None:
            return org_id
        # Ids that nobody knows: any lane will do, but always the same one for one id.
        return -1 - operation.id_unix_ms % _STRANGER_LANES


def _retrieve(answer: "asyncio.Future[Answer]") -> None:
    if not answer.cancelled():
        answer.exception()
