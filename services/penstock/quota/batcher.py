"""Micro-batches: what came while the last batches were in flight is the next.

A batch takes what waits of every organisation that is in no other batch: one organisation's
operations apply in the order in which they came, and its rows are never fought over within this
process. An organisation whose rows somebody else keeps locked gets batches of its own for a while,
so that it stalls the others once, for no longer than the lock time-out.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.core import errors
from penstock.core.clock import Clock
from penstock.quota.ledger import Answer, Operation, Reserve
from penstock.quota.refusals import too_late
from penstock.quota.store.database import BUSY
from penstock.quota.store.ledger_store import Outcome, Timed

logger = logging.getLogger(__name__)

BATCHES_MAX = 4
"""In flight: while one is being committed, the next are applied."""
BESIDE_OPERATIONS_MIN = 128
"""So many wait for a batch beside those in flight. A batch costs PostgreSQL more than a hundred
operations do: fewer wait for the next."""
BESIDE_SECONDS = 0.05
"""Or they wait for so long: the one in flight may be stuck."""
BATCH_OPERATIONS_MAX = 512
"""A larger batch holds its locks longer than it saves in commits."""
ORGANISATION_OPERATIONS_MAX = 16_384
"""Waiting of one organisation: a second or two of work, more would miss its deadlines anyway."""
OPERATIONS_MAX = 32_768
"""Waiting in this process, over all organisations."""
REMEMBERED_MAX = 200_000
"""Keys whose organisation is known without asking."""
FULL_RETRY_SECONDS = 0.25
APART_SECONDS = 30.0
"""How long an organisation whose rows were locked by somebody else has batches of its own."""
APART_MAX = 6
"""Batches of those in flight: a provider's row that is locked sets all of its customers apart, and
others need connections, too."""
NOBODY = 0
"""Stands for the organisation of what no key asks for, and of unknown keys."""

Tell = Callable[[Outcome], None]


class Applies(Protocol):
    """What is batched into: `LedgerStore`."""

    async def apply(self, batch: Sequence[Timed]) -> list[Outcome]: ...

    async def org_ids(self, key_ids: Sequence[int]) -> dict[int, int]: ...


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
    org_id: int = NOBODY
    deadline_monotonic_seconds: float | None = None


@dataclass(slots=True)
class _Organisation:
    """One that has operations. It is ready, or in one batch.

    Attributes:
        waiting: Not in a batch yet.
        ready: Whether the next batch may take it.
        alone: Whether its next batch is its own.
    """

    id: int
    waiting: deque[Waiting] = field(default_factory=deque)
    ready: bool = False
    alone: bool = False


@dataclass(slots=True)
class _Batch:
    organisations: list[_Organisation] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    timed: list[Timed] = field(default_factory=list)
    reservation_ids: set[str] = field(default_factory=set)


class Batcher:
    """Takes operations, and tells the answer of each."""

    def __init__(self, store: Applies, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._key_orgs: OrderedDict[int, int] = OrderedDict()
        self._organisations: dict[int, _Organisation] = {}
        self._ready: deque[_Organisation] = deque()
        """What the next batch is taken from, who waits longest first."""
        self._ready_operations = 0
        self._waiting = 0
        self._batches = 0
        self._start_late: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._apart_until: dict[int, float] = {}
        self._apart_room = asyncio.Semaphore(APART_MAX)

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
        self._start()

    async def drain(self) -> None:
        """Returns when everything that was queued has been told."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _queue(self, one: Waiting) -> None:
        organisation = self._organisations.get(one.org_id)
        if organisation is None:
            organisation = self._organisations[one.org_id] = _Organisation(one.org_id)
            self._make_ready(organisation)
        if (
            len(organisation.waiting) >= ORGANISATION_OPERATIONS_MAX
            or self._waiting >= OPERATIONS_MAX
        ):
            _tell(
                one,
                errors.CapacityExhausted(
                    "too many operations wait for the ledger; try again",
                    reason="LEDGER_QUEUE_FULL",
                    retry_after_seconds=FULL_RETRY_SECONDS,
                ),
            )
            return
        organisation.waiting.append(one)
        self._waiting += 1
        self._ready_operations += organisation.ready

    def _make_ready(self, organisation: _Organisation) -> None:
        if organisation.alone or self._is_apart(organisation.id):
            self._spawn(self._run_apart(organisation))
        else:
            organisation.ready = True
            self._ready.append(organisation)
            self._ready_operations += len(organisation.waiting)

    def _is_apart(self, org_id: int) -> bool:
        until = self._apart_until.get(org_id)
        return until is not None and until > self._clock.monotonic_seconds()

    def _keep_apart(self, org_id: int) -> None:
        now = self._clock.monotonic_seconds()
        self._apart_until = {id_: at for id_, at in self._apart_until.items() if at > now}
        self._apart_until[org_id] = now + APART_SECONDS

    def _start(self, *, beside: bool = False) -> None:
        """One more batch, of what is ready, where there is none or where it is worth it."""
        if not self._ready or self._batches >= BATCHES_MAX:
            return
        if beside or self._batches == 0 or self._ready_operations >= BESIDE_OPERATIONS_MIN:
            self._batches += 1
            self._spawn(self._run())
        elif self._start_late is None:
            loop = asyncio.get_running_loop()
            self._start_late = loop.call_later(BESIDE_SECONDS, self._start_beside)

    def _start_beside(self) -> None:
        self._start_late = None
        self._start(beside=True)

    def _spawn(self, run: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        """One batch after the other, until nothing is ready."""
        while self._ready:
            batch = _Batch()
            while self._ready and len(batch.waiting) < BATCH_OPERATIONS_MAX:
                organisation = self._ready.popleft()
                organisation.ready = False
                self._ready_operations -= len(organisation.waiting)
                self._take(organisation, batch)
            if self._start_late is not None:
                self._start_late.cancel()
                self._start_late = None
            self._start()  # the next one, of what is left
            await self._apply(batch)
        self._batches -= 1

    async def _run_apart(self, organisation: _Organisation) -> None:
        async with self._apart_room:
            organisation.alone = False
            batch = _Batch()
            self._take(organisation, batch)
            await self._apply(batch)
        self._start()

    def _take(self, organisation: _Organisation, batch: _Batch) -> None:
        """Into the batch, without the reserves whose caller has stopped waiting. It has each
        reservation once.
        """
        now = self._clock.monotonic_seconds()
        batch.organisations.append(organisation)
        waiting = organisation.waiting
        while waiting and len(batch.waiting) < BATCH_OPERATIONS_MAX:
            one = waiting[0]
            operation = one.operation
            if operation.reservation_id in batch.reservation_ids:
                break
            waiting.popleft()
            self._waiting -= 1
            deadline = one.deadline_monotonic_seconds
            left_ms = None if deadline is None else int((deadline - now) * 1000)
            # A settle or void is applied even so: it is true, whoever waits for it.
            if isinstance(operation, Reserve):
                if not one.wanted():
                    continue
                if left_ms is not None and left_ms <= 0:
                    _tell(one, too_late(operation))
                    continue
            batch.reservation_ids.add(operation.reservation_id)
            batch.waiting.append(one)
            batch.timed.append(Timed(operation, left_ms))

    async def _apply(self, batch: _Batch) -> None:
        outcomes = await self._outcomes(batch) if batch.waiting else []
        if outcomes is None:
            self._set_apart(batch)
        else:
            # In a task of its own: the next batch is on its way before these are told.
            self._spawn(_tell_each(batch.waiting, outcomes))
        for organisation in batch.organisations:
            if organisation.waiting:
                self._make_ready(organisation)
            else:
                del self._organisations[organisation.id]

    async def _outcomes(self, batch: _Batch) -> Sequence[Outcome] | None:
        """None: somebody locks rows of one of several organisations."""
        try:
            return await self._store.apply(batch.timed)
        except errors.PenstockError as error:
            if error.reason == BUSY:
                if len(batch.organisations) > 1:
                    return None
                self._keep_apart(batch.organisations[0].id)
            return [error] * len(batch.waiting)
        except Exception as error:  # every caller gets an answer, the next batch goes on
            logger.exception("a batch failed")
            failure = errors.Internal(f"the ledger failed ({type(error).__name__})")
            return [failure] * len(batch.waiting)

    def _set_apart(self, batch: _Batch) -> None:
        """Which one is locked shows when each goes on by itself: those that are not are back where
        they were after that.
        """
        for one in reversed(batch.waiting):
            self._organisations[one.org_id].waiting.appendleft(one)
        self._waiting += len(batch.waiting)
        for organisation in batch.organisations:
            organisation.alone = True

    async def _find_orgs(self, operations: Sequence[Waiting]) -> None:
        get = self._key_orgs.get
        unknown = set()
        for one in operations:
            key_id = one.operation.key_id
            if key_id is None:
                continue
            org_id = get(key_id)
            if org_id is None:
                unknown.add(key_id)
            else:
                one.org_id = org_id
        if not unknown:
            return
        found = await self._store.org_ids(sorted(unknown))
        for one in operations:
            if one.operation.key_id in unknown:
                one.org_id = found.get(one.operation.key_id, NOBODY)
        self._key_orgs.update(found)
        while len(self._key_orgs) > REMEMBERED_MAX:
            self._key_orgs.popitem(last=False)


async def _tell_each(waiting: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
    for one, outcome in zip(waiting, outcomes, strict=True):
        _tell(one, outcome)


def _tell(one: Waiting, outcome: Outcome) -> None:
    """One who cannot be told must not keep the others waiting."""
    try:
        one.tell(outcome)
    except Exception:
        logger.exception("nobody could be told of %s", one.operation.reservation_id)
