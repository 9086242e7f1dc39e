"""A provider's limit is waited for, in turn and in time; a limit of the caller's own is not."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.core.errors import PenstockError, RateLimited
from penstock.router.waiting import Limits, Waiting
from support.clock import HandClock
from support.ports import limited
from support.wait import until


class Gate:
    """A ledger of which one limit is full until `open`."""

    def __init__(self, refusal: RateLimited | None = None) -> None:
        self.refusal = refusal
        self.asked: list[str] = []

    def reserve(self, name: str) -> Callable[[], Awaitable[None]]:
        async def ask() -> None:
            self.asked.append(name)
            await asyncio.sleep(0)
            if self.refusal is not None:
                raise self.refusal

        return ask


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def waiting() -> Waiting:
    return Waiting(lambda: Limits(waiting_max=3, margin_seconds=0.1), SystemClock())


class WatchedClock(HandClock):
    """It stands still, and counts how often somebody looks."""

    looks = 0

    def monotonic_seconds(self) -> float:
        self.looks += 1
        return super().monotonic_seconds()

    async def looked_at(self) -> None:
        """Until whoever waits has looked once more."""
        looks = self.looks
        await until(lambda: self.looks > looks)


@pytest.fixture
def clock() -> WatchedClock:
    return WatchedClock()


@pytest.fixture
def by_hand(clock: WatchedClock) -> Waiting:
    """As `waiting`, on the clock that a test moves."""
    return Waiting(lambda: Limits(waiting_max=3, margin_seconds=0.1), clock)


def soon(seconds: float = 10) -> Deadline:
    return Deadline.after(seconds)


async def test_who_is_not_refused_does_not_wait(waiting: Waiting, gate: Gate):
    await waiting.admitted("acme", soon(), gate.reserve("a"))
    assert ["a"] == gate.asked
    assert 0 == waiting.count


async def test_a_window_that_ends_in_time_is_waited_for_and_asked_again(
    by_hand: Waiting, clock: WatchedClock, gate: Gate
):
    gate.refusal = limited(after_seconds=0.02)
    task = asyncio.create_task(
        by_hand.admitted("acme", Deadline.after(10, clock), gate.reserve("a"))
    )
    await until(lambda: by_hand.count == 1)
    gate.refusal = None
    clock.now += 0.019
    await clock.looked_at()
    assert ["a"] == gate.asked
    clock.now += 0.001
    await task
    assert ["a", "a"] == gate.asked  # once, and once when its time had come
    assert 0 == by_hand.count


@pytest.mark.parametrize("kind", ["key", "team", "org"])
async def test_a_limit_of_the_callers_own_is_told_at_once(waiting: Waiting, gate: Gate, kind: str):
    gate.refusal = limited(kind, after_seconds=0.01)
    with pytest.raises(RateLimited) as refused:
        await waiting.admitted("acme", soon(), gate.reserve("a"))
    assert 0.01 == refused.value.retry_after_seconds
    assert ["a"] == gate.asked


@pytest.mark.parametrize("after_seconds", [9.95, 3600, None])
async def test_what_does_not_free_up_in_time_is_told_at_once(
    waiting: Waiting, gate: Gate, after_seconds: float | None
):
    gate.refusal = limited(after_seconds=after_seconds)
    with pytest.raises(RateLimited) as refused:
        await waiting.admitted("acme", soon(10), gate.reserve("a"))
    if after_seconds is None:
        assert refused.value.retry_after_seconds is None
    else:
        assert refused.value.retry_after_seconds == pytest.approx(after_seconds, abs=0.5)
    assert (["a"], 0) == (gate.asked, waiting.count)


async def test_the_queue_is_first_come_first_served_and_newcomers_do_not_overtake(
    waiting: Waiting, gate: Gate
):
    gate.refusal = limited(unit="in_flight", after_seconds=5)
    done: list[str] = []

    async def one(name: str) -> None:
        await waiting.admitted("acme", soon(), gate.reserve(name))
        done.append(name)

    tasks = []
    for name in "abc":
        tasks.append(asyncio.create_task(one(name)))
        await until(lambda: waiting.count == len(tasks))
    # Only the first was refused itself; those behind it did not even ask.
    assert ["a"] == gate.asked
    gate.refusal = None
    waiting.ended("acme")
    await asyncio.gather(*tasks)
    assert ["a", "b", "c"] == done


async def test_a_full_queue_refuses_with_the_time_that_is_true_now(
    by_hand: Waiting, clock: WatchedClock, gate: Gate
):
    gate.refusal = limited(after_seconds=2)
    deadline = Deadline.after(10, clock)
    tasks = [
        asyncio.create_task(by_hand.admitted("acme", deadline, gate.reserve(name)))
        for name in "abc"
    ]
    await until(lambda: by_hand.count == 3)
    clock.now += 0.25
    with pytest.raises(RateLimited) as refused:
        await by_hand.admitted("acme", deadline, gate.reserve("d"))
    assert 1.75 == refused.value.retry_after_seconds
    assert "pool_1" == refused.value.metadata["account_id"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert 0 == by_hand.count


async def test_an_end_of_an_own_attempt_wakes_the_first_of_those_that_wait_for_a_call(
    by_hand: Waiting, clock: WatchedClock, gate: Gate
):
    deadline = Deadline.after(600, clock)
    await by_hand.admitted("acme", deadline, gate.reserve("first"))
    gate.refusal = limited(unit="in_flight", after_seconds=3600)
    # Its hold would expire long after the deadline, but the call may end at any time.
    task = asyncio.create_task(by_hand.admitted("acme", deadline, gate.reserve("a")))
    await until(lambda: by_hand.count == 1)
    gate.refusal = None
    by_hand.ended("acme")
    # No time has passed: it is the end that wakes it.
    async with asyncio.timeout(10):
        await task
    assert ["first", "a", "a"] == gate.asked


async def test_an_end_that_came_while_the_refusal_was_on_its_way_is_not_missed(waiting: Waiting):
    await waiting.admitted("acme", soon(), Gate().reserve("first"))
    asked = 0

    async def reserve() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            waiting.ended("acme")
            raise limited(unit="in_flight", after_seconds=5)

    async with asyncio.timeout(1):
        await waiting.admitted("acme", soon(), reserve)
    assert 2 == asked


async def test_a_limit_in_requests_is_not_asked_about_when_an_attempt_ends(
    by_hand: Waiting, clock: WatchedClock, gate: Gate
):
    deadline = Deadline.after(10, clock)
    await by_hand.admitted("acme", deadline, gate.reserve("first"))
    gate.refusal = limited(unit="requests", after_seconds=0.02)
    task = asyncio.create_task(by_hand.admitted("acme", deadline, gate.reserve("a")))
    await until(lambda: by_hand.count == 1)
    by_hand.ended("acme")
    await clock.looked_at()
    assert ["first", "a"] == gate.asked
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_client_that_hangs_up_leaves_at_once_and_the_next_is_first(
    waiting: Waiting, gate: Gate
):
    gate.refusal = limited(unit="in_flight", after_seconds=5)
    first = asyncio.create_task(waiting.admitted("acme", soon(), gate.reserve("a")))
    await until(lambda: waiting.count == 1)
    second = asyncio.create_task(waiting.admitted("acme", soon(), gate.reserve("b")))
    await until(lambda: waiting.count == 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert 1 == waiting.count
    gate.refusal = None
    waiting.ended("acme")
    await second
    assert "b" == gate.asked[-1]


async def test_whoever_waits_too_long_is_told_when_it_frees_up(
    by_hand: Waiting, clock: WatchedClock, gate: Gate
):
    await by_hand.admitted("acme", Deadline.after(10, clock), gate.reserve("first"))
    gate.refusal = limited(unit="in_flight", after_seconds=60)
    deadline = Deadline.after(0.125, clock)
    task = asyncio.create_task(by_hand.admitted("acme", deadline, gate.reserve("a")))
    await until(lambda: by_hand.count == 1)
    await clock.looked_at()
    assert not task.done()
    clock.now += 0.0625  # the margin of 0.1 s is left over
    with pytest.raises(RateLimited) as refused:
        await task
    assert 60 - 0.0625 == refused.value.retry_after_seconds


async def test_those_behind_go_on_to_the_next_target_once_it_is_known_to_be_too_late(
    waiting: Waiting, gate: Gate
):
    gate.refusal = limited(after_seconds=0.2)
    first = asyncio.create_task(waiting.admitted("acme", soon(60), gate.reserve("a")))
    await until(lambda: waiting.count == 1)
    second = asyncio.create_task(waiting.admitted("acme", soon(5), gate.reserve("b")))
    await until(lambda: waiting.count == 2)
    gate.refusal = limited(after_seconds=30)
    with pytest.raises(RateLimited) as refused:
        await asyncio.wait_for(second, 2)
    assert refused.value.retry_after_seconds == pytest.approx(30, abs=0.5)
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_providers_of_one_pool_share_its_queue(waiting: Waiting, gate: Gate):
    gate.refusal = limited(id_="pool_7", after_seconds=5)
    tasks = [asyncio.create_task(waiting.admitted("acme", soon(), gate.reserve("a")))]
    await until(lambda: waiting.count == 1)
    # The other name asks once, learns that it is the same pool, and queues up behind.
    tasks.append(asyncio.create_task(waiting.admitted("acme-eu", soon(), gate.reserve("b"))))
    await until(lambda: waiting.count == 2)
    tasks.append(asyncio.create_task(waiting.admitted("acme-eu", soon(), gate.reserve("c"))))
    await until(lambda: waiting.count == 3)
    assert ["a", "b"] == gate.asked
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_any_other_error_leaves_the_queue(waiting: Waiting):
    answers: list[PenstockError] = [limited(after_seconds=0.05), limited("key", after_seconds=9)]

    async def reserve() -> None:
        raise answers.pop(0)

    with pytest.raises(RateLimited) as refused:
        await waiting.admitted("acme", soon(), reserve)
    assert "key" == refused.value.metadata["account_kind"]
    assert 0 == waiting.count


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_nobody_waits_who_could_go_on(seed: int):
    """40 attempts through a limit of 3 in flight; some hang up: all others are admitted."""
    waiting = Waiting(lambda: Limits(waiting_max=100, margin_seconds=0.1), SystemClock())
    free, most = 3, 0
    order: list[int] = []

    async def one(number: int) -> None:
        nonlocal free, most

        async def reserve() -> None:
            nonlocal free, most
            await asyncio.sleep(0)
            if free == 0:
                raise limited(unit="in_flight", after_seconds=3600)
            free -= 1
            most = max(most, 3 - free)

        await waiting.admitted("acme", soon(30), reserve)
        order.append(number)
        try:
            await asyncio.sleep(0.001 * ((number * (seed + 3)) % 5))
        finally:
            free += 1
            waiting.ended("acme")

    tasks = [asyncio.create_task(one(number)) for number in range(40)]
    await asyncio.sleep(0.002)
    for task in tasks[seed::7]:
        task.cancel()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(None), asyncio.CancelledError} >= {type(r) for r in results}
    assert (3, 0, 3) == (free, waiting.count, most)
    assert sorted(order) == order
