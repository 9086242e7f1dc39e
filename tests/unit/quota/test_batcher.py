"""Lanes by organisation: order, isolation, deadlines, limits, over a fake store."""

import asyncio
from collections.abc import Sequence

import pytest

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.quota import batcher as batcher_module
from penstock.quota.batcher import Batcher
from penstock.quota.ledger import Answer, Operation
from penstock.quota.store.ledger_store import Outcome, Timed
from support.ledger import reserve, settle, void

ANSWER = Answer(None, None, 0, 0, overage=False, late=False)


class FakeClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def monotonic_seconds(self) -> float:
        return self.seconds

    def unix_seconds(self) -> float:
        return self.seconds


class FakeStore:
    """Keys 1 and 2 belong to organisations 10 and 20; others are unknown."""

    def __init__(self) -> None:
        self.batches: list[list[Operation]] = []
        self.closed: dict[int, asyncio.Event] = {}
        self.running: set[int] = set()
        self.error: Exception | None = None
        self.reservations: dict[str, int] = {}
        self.lookups = 0

    def stall(self, key_id: int) -> asyncio.Event:
        return self.closed.setdefault(key_id, asyncio.Event())

    async def apply(self, batch: Sequence[Timed]) -> list[Outcome]:
        operations = [timed.operation for timed in batch]
        self.batches.append(operations)
        key_id = getattr(operations[0], "key_id", 0)
        assert key_id not in self.running, "two batches of one organisation at once"
        self.running.add(key_id)
        try:
            if key_id in self.closed:
                await self.closed[key_id].wait()
            await asyncio.sleep(0)
        finally:
            self.running.discard(key_id)
        if self.error is not None:
            raise self.error
        return [ANSWER for _ in batch]

    async def org_ids(
        self, key_ids: Sequence[int], reservation_ids: Sequence[str]
    ) -> tuple[dict[int, int], dict[str, int]]:
        self.lookups += 1
        known = {1: 10, 2: 20}
        found = {id_: self.reservations[id_] for id_ in reservation_ids if id_ in self.reservations}
        return {key_id: known[key_id] for key_id in key_ids if key_id in known}, found


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
    first = await batcher.submit([(reserve(uuid7(), 1), None)])
    await asyncio.sleep(0)
    later = [reserve(uuid7(), 1) for _ in range(5)]
    answers = await batcher.submit([(operation, None) for operation in later])

    go.set()
    await asyncio.gather(*first, *answers)

    assert [1, 5] == [len(batch) for batch in store.batches]
    assert later == store.batches[1]


async def test_a_slow_organisation_does_not_stall_another(
    batcher: Batcher, store: FakeStore
) -> None:
    go = store.stall(1)
    slow = asyncio.create_task(batcher.apply(reserve(uuid7(), 1)))
    await asyncio.sleep(0)

    assert await batcher.apply(reserve(uuid7(), 2)) == ANSWER

    assert not slow.done()
    go.set()
    assert await slow == ANSWER


async def test_a_settle_follows_its_reserve_without_a_lookup(
    batcher: Batcher, store: FakeStore
) -> None:
    id_ = uuid7()
    operations = [reserve(id_, 1), settle(id_, 3), void(id_)]

    answers = await batcher.submit([(operation, None) for operation in operations])
    await asyncio.gather(*answers)

    assert store.batches == [operations]
    assert store.lookups == 1  # of the key
    await batcher.apply(settle(id_, 3))
    assert store.lookups == 1


async def test_a_settle_of_another_processs_reservation_takes_its_lane(
    batcher: Batcher, store: FakeStore
) -> None:
    id_ = uuid7()
    store.reservations[id_] = 10
    go = store.stall(1)
    await batcher.submit([(reserve(uuid7(), 1), None)])
    await asyncio.sleep(0)

    settled = asyncio.create_task(batcher.apply(settle(id_, 1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert len(store.batches) == 1
    go.set()
    await settled


async def test_a_reserve_whose_deadline_passed_in_the_queue_is_not_applied(
    batcher: Batcher, store: FakeStore, clock: FakeClock
) -> None:
    go = store.stall(1)
    await batcher.submit([(reserve(uuid7(), 1), None)])
    await asyncio.sleep(0)
    id_ = uuid7()
    late, ended = await batcher.submit([(reserve(uuid7(), 1), 50), (settle(id_, 1), 50)])

    clock.seconds += 0.051
    go.set()

    with pytest.raises(errors.DeadlineExceeded):
        await late
    # A settle is true, whoever waits for it.
    assert await ended == ANSWER
    assert [1, 1] == [len(batch) for batch in store.batches]


async def test_a_reserve_whose_caller_has_gone_is_not_applied(
    batcher: Batcher, store: FakeStore
) -> None:
    go = store.stall(1)
    await batcher.submit([(reserve(uuid7(), 1), None)])
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
async def test_a_failed_batch_is_told_to_each_and_the_lane_goes_on(
    batcher: Batcher, store: FakeStore, error: Exception, kind: type[Exception]
) -> None:
    store.error = error
    answers = await batcher.submit([(reserve(uuid7(), 1), None) for _ in range(3)])
    for answer in answers:
        with pytest.raises(kind):
            await answer

    store.error = None
    assert await batcher.apply(reserve(uuid7(), 1)) == ANSWER


async def test_a_full_lane_refuses_at_once_and_leaves_others_alone(
    batcher: Batcher, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "LANE_OPERATIONS_MAX", 2)
    go = store.stall(1)
    await batcher.submit([(reserve(uuid7(), 1), None)])
    await asyncio.sleep(0)
    answers = await batcher.submit([(reserve(uuid7(), 1), None) for _ in range(3)])

    with pytest.raises(errors.CapacityExhausted) as raised:
        await answers[2]
    assert raised.value.reason == "LEDGER_QUEUE_FULL"
    assert raised.value.retry_after_seconds
    assert await batcher.apply(reserve(uuid7(), 2)) == ANSWER
    go.set()
    assert await asyncio.gather(*answers[:2]) == [ANSWER, ANSWER]


async def test_large_queues_are_cut_into_batches(
    batcher: Batcher, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "BATCH_OPERATIONS_MAX", 4)
    answers = await batcher.submit([(reserve(uuid7(), 1), None) for _ in range(10)])
    await asyncio.gather(*answers)

    assert [4, 4, 2] == [len(batch) for batch in store.batches]


async def test_drain_answers_everything_that_was_queued(batcher: Batcher) -> None:
    answers = await batcher.submit([(reserve(uuid7(), n % 2 + 1), None) for n in range(20)])

    await batcher.drain()

    assert all(answer.done() for answer in answers)
