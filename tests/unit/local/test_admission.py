import asyncio

import pytest

from penstock.core.clock import SystemClock
from penstock.core.errors import CapacityExhausted, InvalidRequest
from penstock.local.admission import RETRY_SECONDS_DEFAULT, Admission


class Clock(SystemClock):
    def __init__(self) -> None:
        self.now_seconds = 100.0

    def monotonic_seconds(self) -> float:
        return self.now_seconds


class Holder:
    """A request that holds its slots until it is let go."""

    def __init__(self, admission: Admission, choices: int = 1) -> None:
        self.running = False
        self._go = asyncio.Event()
        self.task = asyncio.create_task(self._run(admission, choices))

    async def _run(self, admission: Admission, choices: int) -> None:
        async with admission.slot(choices):
            self.running = True
            await self._go.wait()
        self.running = False

    async def end(self) -> None:
        self._go.set()
        await self.task
        await turn()


async def turn() -> None:
    """Lets everything that can run, run."""
    for _ in range(5):
        await asyncio.sleep(0)


def admission(slots: int, queue_limit: int, clock: Clock | None = None) -> Admission:
    return Admission(slots=slots, queue_limit=queue_limit, clock=clock or Clock())


async def test_slots_and_queue_are_taken_exactly_then_refused_at_once() -> None:
    subject = admission(slots=2, queue_limit=1)
    held = [Holder(subject) for _ in range(3)]
    await turn()
    assert [h.running for h in held] == [True, True, False]
    assert (subject.running, subject.waiting) == (2, 1)
    with pytest.raises(CapacityExhausted) as caught:
        async with subject.slot(1):
            pass
    assert caught.value.retry_after_seconds == RETRY_SECONDS_DEFAULT
    for holder in held:
        await holder.end()
    assert (subject.running, subject.waiting) == (0, 0)


async def test_the_queue_is_first_come_first_served() -> None:
    subject = admission(slots=2, queue_limit=8)
    first, wide, narrow = Holder(subject), Holder(subject, 2), Holder(subject)
    await turn()
    assert [first.running, wide.running, narrow.running] == [True, False, False]
    await first.end()
    assert [wide.running, narrow.running] == [True, False]
    await wide.end()
    assert narrow.running
    await narrow.end()


async def test_choices_take_a_slot_each() -> None:
    subject = admission(slots=4, queue_limit=0)
    holder = Holder(subject, 3)
    await turn()
    assert subject.running == 3
    with pytest.raises(CapacityExhausted):
        async with subject.slot(2):
            pass
    async with subject.slot(1):
        assert subject.running == 4
    await holder.end()


async def test_more_choices_than_slots_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest) as caught:
        async with admission(slots=2, queue_limit=8).slot(3):
            pass
    assert caught.value.violations[0].field == "input.n"


async def test_a_cancelled_waiter_leaves_its_place_to_the_next() -> None:
    subject = admission(slots=2, queue_limit=8)
    first, wide, narrow = Holder(subject), Holder(subject, 2), Holder(subject)
    await turn()
    wide.task.cancel()
    await turn()
    assert narrow.running
    assert (subject.running, subject.waiting) == (2, 0)
    await first.end()
    await narrow.end()
    assert subject.running == 0


async def test_a_waiter_cancelled_in_the_turn_of_its_admission_gives_the_slot_back() -> None:
    subject = admission(slots=1, queue_limit=2)
    first, second, third = (Holder(subject) for _ in range(3))
    await turn()
    first._go.set()
    await first.task  # second is admitted, and has not run yet
    second.task.cancel()
    await turn()
    assert third.running
    assert (subject.running, subject.waiting) == (1, 0)
    await third.end()


async def test_the_time_in_a_slot_is_learnt_and_told_to_the_refused() -> None:
    clock = Clock()
    subject = admission(slots=1, queue_limit=0, clock=clock)
    for seconds, expected in [(4.0, 4.0), (9.0, 5.0)]:
        async with subject.slot(1):
            clock.now_seconds += seconds
        assert subject.service_seconds == pytest.approx(expected)
    async with subject.slot(1):
        with pytest.raises(CapacityExhausted) as caught:
            async with subject.slot(1):
                pass
    assert caught.value.retry_after_seconds == pytest.approx(5.0)
