"""The circuit breaker, moment by moment."""

import pytest

from penstock.router.breaker import PAUSE_SECONDS_MAX, Breaker, Permit, Trip
from support.clock import HandClock


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def breaker(clock: HandClock) -> Breaker:
    return Breaker(lambda: Trip(3, 5), clock)


def enter(breaker: Breaker) -> Permit:
    permit = breaker.enter()
    assert permit is not None
    return permit


def trip(breaker: Breaker) -> None:
    for _ in range(3):
        enter(breaker).failed()


def test_opens_at_the_third_failure_in_a_row(breaker: Breaker) -> None:
    enter(breaker).failed()
    enter(breaker).failed()
    assert breaker.admits
    enter(breaker).failed()
    assert breaker.enter() is None
    assert breaker.retry_after_seconds == 5


def test_a_success_between_starts_the_count_again(breaker: Breaker) -> None:
    for _ in range(10):
        enter(breaker).failed()
        enter(breaker).failed()
        enter(breaker).succeeded()
    assert breaker.is_closed


def test_a_call_without_verdict_counts_for_nothing(breaker: Breaker) -> None:
    enter(breaker).failed()
    enter(breaker).failed()
    enter(breaker).dropped()
    assert breaker.is_closed
    enter(breaker).failed()
    assert not breaker.is_closed


def test_only_the_first_verdict_counts(breaker: Breaker) -> None:
    permit = enter(breaker)
    for _ in range(3):
        permit.failed()
    assert breaker.is_closed


def test_after_the_pause_one_probe_passes(breaker: Breaker, clock: HandClock) -> None:
    trip(breaker)
    clock.now += 4.9
    assert not breaker.admits
    clock.now += 0.1
    assert breaker.retry_after_seconds is None
    enter(breaker)
    assert breaker.enter() is None
    assert breaker.retry_after_seconds == 1.0


def test_a_probe_that_succeeds_closes(breaker: Breaker, clock: HandClock) -> None:
    trip(breaker)
    clock.now += 5
    enter(breaker).succeeded()
    assert breaker.is_closed
    assert breaker.retry_after_seconds is None


def test_a_probe_that_fails_opens_for_the_whole_time_again(
    breaker: Breaker, clock: HandClock
) -> None:
    trip(breaker)
    clock.now += 7
    enter(breaker).failed()
    assert breaker.retry_after_seconds == 5


def test_a_probe_that_is_dropped_lets_the_next_one_pass(breaker: Breaker, clock: HandClock) -> None:
    trip(breaker)
    clock.now += 5
    enter(breaker).dropped()
    enter(breaker).succeeded()
    assert breaker.is_closed


def test_a_probe_that_begins_to_answer_lets_the_others_pass(
    breaker: Breaker, clock: HandClock
) -> None:
    trip(breaker)
    clock.now += 5
    probe = enter(breaker)
    probe.progressed()
    assert breaker.is_closed
    # It is on probation still: breaking off opens at once.
    probe.failed()
    assert not breaker.is_closed


def test_a_call_from_before_proves_nothing(breaker: Breaker) -> None:
    old = enter(breaker)
    trip(breaker)
    old.succeeded()
    assert not breaker.is_closed


def test_a_late_failure_does_not_prolong(breaker: Breaker, clock: HandClock) -> None:
    old = enter(breaker)
    trip(breaker)
    clock.now += 4
    old.failed()
    assert breaker.retry_after_seconds == 1


def test_a_pause_that_is_asked_for_is_kept_and_bounded(breaker: Breaker, clock: HandClock) -> None:
    breaker.pause(30)
    breaker.pause(10)
    assert breaker.retry_after_seconds == 30
    clock.now += 30
    assert breaker.admits
    breaker.pause(10**9)
    assert breaker.retry_after_seconds == PAUSE_SECONDS_MAX


def test_a_change_of_its_settings_reaches_a_breaker_at_its_next_failure(clock: HandClock) -> None:
    settings = [Trip(failures=3, open_seconds=5)]
    breaker = Breaker(lambda: settings[-1], clock)
    enter(breaker).failed()
    settings.append(Trip(failures=2, open_seconds=60))
    enter(breaker).failed()
    assert 60 == breaker.retry_after_seconds
