from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.quota.alerts.forecast import Spending, exhausted_at

START = datetime(2026, 11, 1, tzinfo=UTC)
LIMIT = 10**9


def at(
    hours: float, spent: int, *, limit: int = LIMIT, length_hours: float = 100
) -> datetime | None:
    return exhausted_at(
        Spending(
            spent, limit, START, START + timedelta(hours=hours),
            START + timedelta(hours=length_hours),
        )
    )  # fmt: skip


def test_at_twice_the_rate_it_lasts_half_of_the_window() -> None:
    assert START + timedelta(hours=50) == at(25, LIMIT // 2)


def test_at_its_rate_to_the_nano_it_lasts_and_with_one_more_it_does_not() -> None:
    assert at(50, LIMIT // 2) is None
    found = at(50, LIMIT // 2 + 1)
    assert found is not None
    assert found < START + timedelta(hours=100)


@pytest.mark.parametrize(
    ("hours", "spent", "speaks"),
    [
        (9.99, LIMIT // 2, False),
        (10, LIMIT // 2, True),
        (10, LIMIT // 5, True),
        (10, LIMIT // 5 - 1, False),
        (50, LIMIT, False),
        (50, LIMIT + 1, False),
        (50, 0, False),
    ],
)
def test_it_speaks_only_with_enough_of_window_and_limit(
    hours: float, spent: int, *, speaks: bool
) -> None:
    assert speaks == (at(hours, spent) is not None)


def test_amounts_beyond_the_exactness_of_floats_are_told_apart() -> None:
    limit = 2**62
    assert at(50, limit // 2, limit=limit) is None
    assert at(50, limit // 2 + 1, limit=limit) is not None


@given(
    st.integers(1, 2**62),
    st.integers(1, 2**62),
    st.integers(0, 10**12),
    st.integers(1, 10**12),
)
def test_a_forecast_lies_between_now_and_the_window_s_end(
    spent: int, limit: int, elapsed: int, rest: int
) -> None:
    now = START + timedelta(microseconds=elapsed)
    end = now + timedelta(microseconds=rest)
    found = exhausted_at(Spending(spent, limit, START, now, end))
    if found is not None:
        assert now <= found < end
        # At that moment, and not a microsecond later, the line crosses the limit.
        passed = (found - START) // timedelta(microseconds=1)
        assert passed * spent <= limit * elapsed < (passed + 1) * spent
