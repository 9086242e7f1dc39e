"""What a process knows of flights, and how it batches, without a store."""

import asyncio
from uuid import UUID, uuid4

import pytest

from penstock.cache.flights import FLIGHT_SECONDS_MAX, Led, Waits
from penstock.cache.store.base import Flight, Found, Key, Verdict
from penstock.cache.store.micro_batch import BATCH_ITEMS_MAX, MicroBatch

KEY = Key("org_a", bytes(32))


class HandClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic_seconds(self) -> float:
        return self.now

    def unix_seconds(self) -> float:
        return self.now


def test_a_lease_is_renewed_until_the_flight_is_resolved_or_too_old() -> None:
    clock = HandClock()
    led = Led(clock)
    old, young, resolved = uuid4(), uuid4(), uuid4()
    led.add(KEY, old)
    clock.now += FLIGHT_SECONDS_MAX
    led.add(KEY, young)
    led.add(KEY, resolved)
    led.remove(resolved)
    led.remove(resolved)
    assert led.to_renew() == [Flight(KEY, old), Flight(KEY, young)]
    clock.now += 1
    assert led.to_renew() == [Flight(KEY, young)]


def waiter(waits: Waits, token: UUID) -> "asyncio.Task[Found | None]":
    return asyncio.create_task(waits.end_of(Flight(KEY, token)))


async def test_the_end_of_a_flight_wakes_its_waiters_with_the_answer_and_no_others() -> None:
    waits, token, other = Waits(), uuid4(), uuid4()
    first, second, third = waiter(waits, token), waiter(waits, token), waiter(waits, other)
    await asyncio.sleep(0)
    found = Found(Verdict.SHARED, b"answer")
    waits.end(token, found)
    assert await first == found
    assert await second == found
    await asyncio.sleep(0)
    assert not third.done()
    assert waits.flights == [Flight(KEY, other)]
    third.cancel()


async def test_an_end_that_came_before_its_waiter_is_not_missed() -> None:
    waits, token = Waits(), uuid4()
    waits.end(token)
    assert await asyncio.wait_for(waits.end_of(Flight(KEY, token)), 1) is None


async def test_looking_again_wakes_but_ends_nothing() -> None:
    waits, token = Waits(), uuid4()
    first = waiter(waits, token)
    await asyncio.sleep(0)
    waits.look_again([token, uuid4()])
    assert await first is None
    second = waiter(waits, token)
    await asyncio.sleep(0)
    assert not second.done()
    waits.look_again()
    assert await second is None


async def test_a_cancelled_waiter_is_forgotten() -> None:
    waits, token = Waits(), uuid4()
    task = waiter(waits, token)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waits.flights == []
    waits.end(token)


async def test_a_batch_takes_what_came_while_the_last_ones_ran() -> None:
    batches: list[int] = []
    go_on = asyncio.Event()

    async def apply(items):
        batches.append(len(items))
        await go_on.wait()
        return [item * 2 for item in items]

    batcher: MicroBatch[int, int] = MicroBatch(apply)
    futures = []
    for wave in (1, 1, BATCH_ITEMS_MAX + 5):
        futures += [batcher.submit(n) for n in range(wave)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    go_on.set()
    results = await asyncio.gather(*futures)
    assert results == [0, 0, *(n * 2 for n in range(BATCH_ITEMS_MAX + 5))]
    assert batches == [1, 1, BATCH_ITEMS_MAX, 5]


async def test_an_error_is_told_to_its_batch_and_the_next_one_goes_on() -> None:
    async def apply(items):
        if "bad" in items:
            raise ValueError("bad")
        return items

    batcher: MicroBatch[str, str] = MicroBatch(apply)
    bad, beside = batcher.submit("bad"), batcher.submit("beside")
    results = await asyncio.gather(bad, beside, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert await batcher.submit("good") == "good"


async def test_an_item_that_was_cancelled_before_its_batch_is_not_applied() -> None:
    seen: list[str] = []

    async def apply(items):
        seen.extend(items)
        return items

    batcher: MicroBatch[str, str] = MicroBatch(apply)
    batcher.submit("dropped").cancel()
    assert await batcher.submit("kept") == "kept"
    assert seen == ["kept"]
