"""Batches by organisation: order, isolation, deadlines, limits, over a fake store."""

import asyncio
from collections.abc import Sequence

import pytest

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.quota import batcher as batcher_module
from penstock.quota.batcher import APART_SECONDS, Batcher, Waiting
from penstock.quota.ledger import Answer, Operation
from penstock.quota.store.database import BUSY
from penstock.quota.store.ledger_store import Outcome, Timed
from support.ledger import reserve, settle, void

ANSWER = Answer(10, None, None, 0, 0, overage=False, late=False)


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic_seconds(self) -> float:
        return self.seconds

    def unix_seconds(self) -> float:
        return self.seconds


ORGS = {1: 1, 2: 2, 3: 3}
"""Of keys 1 to 3. Others are unknown."""


class FakeStore:
    """Knows the organisations of `ORGS`."""

    def __init__(self) -> None:
        self.batches: list[list[Operation]] = []
        self._began = asyncio.Event()
        self.closed: dict[int, asyncio.Event] = {}
        self.running: set[int | None] = set()
        self.error: Exception | None = None
        self.locked: set[int] = set()
        """Keys whose rows somebody else keeps locked: a batch with one of them is BUSY."""
        self.lookups = 0

    def stall(self, key_id: int) -> asyncio.Event:
        return self.closed.setdefault(key_id, asyncio.Event())

    async def apply(self, batch: Sequence[Timed]) -> list[Outcome]:
        operations = [timed.operation for timed in batch]
        self.batches.append(operations)
        self._began.set()
        key_ids = {operation.key_id for operation in operations}
        assert not key_ids & self.running, "two batches of one organisation at once"
        self.running |= key_ids
        try:
            for key_id, gate in self.closed.items():
                if key_id in key_ids:
                    await gate.wait()
            await asyncio.sleep(0)
        finally:
            self.running -= key_ids
        if self.error is not None:
            raise self.error
        if self.locked & key_ids:
            raise errors.Unavailable("locked", reason=BUSY)
        return [ANSWER for _ in batch]

    async def has_batches(self, count: int) -> None:
        while len(self.batches) < count:
            self._began.clear()
            await self._began.wait()

    async def org_ids(self, key_ids: Sequence[int]) -> dict[int, int]:
        self.lookups += 1
        return {key_id: ORGS[key_id] for key_id in key_ids if key_id in ORGS}


class Asked:
    """Operations that were submitted, and what each was told."""

    def __init__(self, *operations: Operation, left_ms: int | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.operations = operations
        self.told: list[asyncio.Future[Outcome]] = [loop.create_future() for _ in operations]
        self.waiting = [
            Waiting(operation, left_ms, future.set_result)
            for operation, future in zip(operations, self.told, strict=True)
        ]

    async def outcomes(self) -> list[Outcome]:
        return await asyncio.gather(*self.told)


async def submitted(batcher: Batcher, *operations: Operation, left_ms: int | None = None) -> Asked:
    asked = Asked(*operations, left_ms=left_ms)
    await batcher.submit(asked.waiting)
    return asked


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def batcher(store: FakeStore, clock: FakeClock) -> Batcher:
    return Batcher(store, clock)


async def test_what_came_while_a_batch_was_in_flight_is_the_next_batch(
    batcher: Batcher, store: FakeStore
) -> None:
    go = store.stall(1)
    first = await submitted(batcher, reserve(uuid7(), 1))
    await asyncio.sleep(0)
    later = [reserve(uuid7(), 1) for _ in range(5)]
    asked = await submitted(batcher, *later)

    go.set()
    await first.outcomes()
    await asked.outcomes()

    assert [1, 5] == [len(batch) for batch in store.batches]
    assert later == store.batches[1]


async def test_a_slow_organisation_does_not_stall_another(
    batcher: Batcher, store: FakeStore
) -> None:
    go = store.stall(1)
    slow = asyncio.create_task(batcher.apply(reserve(uuid7(), 1)))
    await store.has_batches(1)

    assert await batcher.apply(reserve(uuid7(), 2)) == ANSWER

    assert not slow.done()
    go.set()
    assert await slow == ANSWER


async def test_organisations_share_a_batch(batcher: Batcher, store: FakeStore) -> None:
    both = [reserve(uuid7(), 1), reserve(uuid7(), 3)]

    await (await submitted(batcher, *both)).outcomes()

    assert [both] == store.batches


async def test_operations_on_one_reservation_follow_each_other(
    batcher: Batcher, store: FakeStore
) -> None:
    id_ = uuid7()
    operations: list[Operation] = [
        reserve(id_, 1),
        settle(id_, 3, key_id=1),
        void(id_, key_id=1),
    ]

    await (await submitted(batcher, *operations)).outcomes()

    # A batch has each reservation once.
    assert [[operation] for operation in operations] == store.batches


async def test_one_reservation_of_two_organisations_is_not_twice_in_a_batch(
    batcher: Batcher, store: FakeStore
) -> None:
    id_ = uuid7()
    operations: list[Operation] = [reserve(id_, 1), settle(id_, 3, key_id=2)]

    await (await submitted(batcher, *operations)).outcomes()

    assert [[operation] for operation in operations] == store.batches


async def test_the_organisation_of_a_key_is_asked_for_once(
    batcher: Batcher, store: FakeStore
) -> None:
    for _ in range(2):
        await batcher.apply(reserve(uuid7(), 1))
    assert store.lookups == 1


async def test_no_more_batches_are_in_flight_than_there_may_be(
    batcher: Batcher, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "BATCHES_MAX", 2)
    gates = [store.stall(key_id) for key_id in (1, 2)]
    asked = []
    for key_id in (1, 2, 3):
        asked.append(await submitted(batcher, reserve(uuid7(), key_id)))
        await store.has_batches(min(key_id, 2))

    assert len(store.batches) == 2
    gates[0].set()
    assert await asked[2].outcomes() == [ANSWER]
    assert not asked[1].told[0].done()
    gates[1].set()
    await batcher.drain()


async def test_what_waits_for_an_organisation_in_flight_begins_no_other_batch(
    batcher: Batcher, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "BESIDE_OPERATIONS_MIN", 3)
    monkeypatch.setattr(batcher_module, "BESIDE_SECONDS", 3600.0)
    gate = store.stall(1)
    first = await submitted(batcher, reserve(uuid7(), 1))
    await store.has_batches(1)
    behind = await submitted(batcher, *(reserve(uuid7(), 1) for _ in range(3)))

    beside = []
    for _ in range(3):
        beside.append(await submitted(batcher, reserve(uuid7(), 2)))
        await asyncio.sleep(0)
    await store.has_batches(2)

    assert [2, 2, 2] == [operation.key_id for operation in store.batches[1]]
    gate.set()
    await asyncio.gather(*(asked.outcomes() for asked in (first, behind, *beside)))


async def test_a_reserve_whose_deadline_passed_in_the_queue_is_not_applied(
    batcher: Batcher, store: FakeStore, clock: FakeClock
) -> None:
    go = store.stall(1)
    await submitted(batcher, reserve(uuid7(), 1))
    await asyncio.sleep(0)
    id_ = uuid7()
    asked = await submitted(batcher, reserve(uuid7(), 1), settle(id_, 1, key_id=1), left_ms=50)

    clock.seconds += 0.051
    go.set()

    late, ended = await asked.outcomes()
    assert isinstance(late, errors.DeadlineExceeded)
    # A settle is true, whoever waits for it.
    assert ended == ANSWER
    assert [1, 1] == [len(batch) for batch in store.batches]


async def test_a_reserve_whose_caller_has_gone_is_not_applied(
    batcher: Batcher, store: FakeStore
) -> None:
    go = store.stall(1)
    await submitted(batcher, reserve(uuid7(), 1))
    await asyncio.sleep(0)
    gone = asyncio.create_task(batcher.apply(reserve(uuid7(), 1)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)

    go.set()
    await batcher.drain()

    assert [1] == [len(batch) for batch in store.batches]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.Unavailable("away", reason="LEDGER_UNAVAILABLE"), errors.Unavailable),
        (RuntimeError("a bug"), errors.Internal),
    ],
)
async def test_a_failed_batch_is_told_to_each_and_the_next_goes_on(
    batcher: Batcher, store: FakeStore, error: Exception, kind: type[Exception]
) -> None:
    store.error = error
    asked = await submitted(batcher, *(reserve(uuid7(), 1) for _ in range(3)))
    assert [kind] * 3 == [type(outcome) for outcome in await asked.outcomes()]

    store.error = None
    assert await batcher.apply(reserve(uuid7(), 1)) == ANSWER


async def test_a_full_queue_refuses_at_once_and_leaves_others_alone(
    batcher: Batcher, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "ORGANISATION_OPERATIONS_MAX", 2)
    go = store.stall(1)
    await submitted(batcher, reserve(uuid7(), 1))
    await asyncio.sleep(0)
    asked = await submitted(batcher, *(reserve(uuid7(), 1) for _ in range(3)))

    refused = await asked.told[2]
    assert isinstance(refused, errors.CapacityExhausted)
    assert refused.reason == "LEDGER_QUEUE_FULL"
    assert refused.retry_after_seconds
    assert await batcher.apply(reserve(uuid7(), 2)) == ANSWER
    go.set()
    assert await asyncio.gather(*asked.told[:2]) == [ANSWER, ANSWER]


async def test_large_queues_are_cut_into_batches(
    batcher: Batcher, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "BATCH_OPERATIONS_MAX", 4)

    await (await submitted(batcher, *(reserve(uuid7(), 1) for _ in range(10)))).outcomes()

    assert [4, 4, 2] == [len(batch) for batch in store.batches]


async def test_drain_answers_everything_that_was_queued(batcher: Batcher) -> None:
    asked = await submitted(batcher, *(reserve(uuid7(), n % 2 + 1) for n in range(20)))

    await batcher.drain()

    assert all(told.done() for told in asked.told)


async def test_a_locked_organisation_stalls_others_once_and_then_goes_apart(
    batcher: Batcher, store: FakeStore, clock: FakeClock
) -> None:
    store.locked = {1}
    locked, other = await (
        await submitted(batcher, reserve(uuid7(), 1), reserve(uuid7(), 3))
    ).outcomes()
    # Together they were busy; each by itself shows whose fault it is.
    assert isinstance(locked, errors.Unavailable)
    assert (BUSY, ANSWER) == (locked.reason, other)

    go = store.stall(1)
    apart = await submitted(batcher, reserve(uuid7(), 1))
    await asyncio.sleep(0)
    assert await batcher.apply(reserve(uuid7(), 3)) == ANSWER
    assert not apart.told[0].done()

    store.locked = set()
    go.set()
    assert await apart.outcomes() == [ANSWER]
    # After a while it is as any other again.
    clock.seconds += APART_SECONDS
    both = [reserve(uuid7(), 1), reserve(uuid7(), 3)]
    await (await submitted(batcher, *both)).outcomes()
    assert both == store.batches[-1]


async def test_what_came_while_its_organisation_went_alone_is_not_forgotten(
    batcher: Batcher, store: FakeStore
) -> None:
    store.locked = {1}
    go = store.stall(2)
    both = await submitted(batcher, reserve(uuid7(), 1), reserve(uuid7(), 2))
    await store.has_batches(1)
    go.set()
    await store.has_batches(3)
    late = await submitted(batcher, reserve(uuid7(), 2))

    assert await both.told[1] == ANSWER
    assert await asyncio.wait_for(late.outcomes(), 10) == [ANSWER]


async def test_a_pools_locked_row_leaves_connections_to_others(
    batcher: Batcher, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "APART_MAX", 1)
    batcher = Batcher(store, FakeClock())
    store.locked = {1, 2}
    await (await submitted(batcher, reserve(uuid7(), 1), reserve(uuid7(), 2))).outcomes()
    store.locked = set()
    gate = store.stall(1)
    asked = await submitted(batcher, reserve(uuid7(), 1), reserve(uuid7(), 2))
    await store.has_batches(4)

    assert await batcher.apply(reserve(uuid7(), 3)) == ANSWER
    assert [False, False] == [told.done() for told in asked.told]
    gate.set()
    await batcher.drain()


async def test_one_who_cannot_be_told_keeps_nobody_waiting(
    batcher: Batcher, store: FakeStore
) -> None:
    def fail(_: Outcome) -> None:
        raise RuntimeError("a bug")

    await batcher.submit([Waiting(reserve(uuid7(), 1), None, fail)])

    assert await batcher.apply(reserve(uuid7(), 1)) == ANSWER
