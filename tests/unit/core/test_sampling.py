import pytest

from penstock.core.sampling import TokenBucket


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_it_gives_the_burst_then_the_rate():
    now = Time()
    bucket = TokenBucket(20, 20, now)

    assert 20 == sum(bucket.take() for _ in range(100))
    now.seconds += 0.5
    assert 10 == sum(bucket.take() for _ in range(100))


def test_idle_time_saves_up_no_more_than_the_burst():
    now = Time()
    bucket = TokenBucket(20, 5, now)
    now.seconds += 3600

    assert 5 == sum(bucket.take() for _ in range(100))


def test_over_ten_seconds_it_gives_rate_times_time_and_one_burst():
    now = Time()
    bucket = TokenBucket(20, 20, now)

    given = 0
    for _ in range(10_000):
        now.seconds += 0.001
        given += bucket.take()

    assert given == pytest.approx(220, abs=1)


def test_a_rate_of_zero_never_gives_one():
    now = Time()
    bucket = TokenBucket(0, 20, now)
    now.seconds += 3600

    assert not bucket.take()
