from penstock.quota.alerts.backoff import LONGEST_MS, TRIES_MAX, delay_ms

MIDDLE = 0.5


def test_delays_grow_fourfold_up_to_four_hours() -> None:
    delays = [delay_ms(tries, MIDDLE) for tries in range(1, 9)]
    assert [
        5_000, 20_000, 80_000, 320_000, 1_280_000, 5_120_000, 14_400_000, 14_400_000,
    ] == delays  # fmt: skip


def test_all_tries_take_less_than_a_day_and_more_than_half_of_one() -> None:
    def total_hours(chance: float) -> float:
        return sum(delay_ms(n, chance) or 0 for n in range(1, TRIES_MAX)) / 3_600_000

    assert 12 < total_hours(0.0) < total_hours(MIDDLE) < 24
    # All delays at their longest, which chance never is.
    assert total_hours(0.999) < 28


def test_after_the_last_try_there_is_none() -> None:
    assert delay_ms(TRIES_MAX - 1, MIDDLE) is not None
    assert delay_ms(TRIES_MAX, MIDDLE) is None
    assert delay_ms(TRIES_MAX + 1, MIDDLE, retry_after_seconds=5) is None


def test_jitter_spreads_by_a_quarter_to_both_sides() -> None:
    assert (3_750, 5_000, 6_249) == tuple(delay_ms(1, c) for c in (0.0, MIDDLE, 0.9999))


def test_a_pause_that_is_asked_for_is_kept_within_bounds() -> None:
    assert 60_000 == delay_ms(1, MIDDLE, retry_after_seconds=60)
    assert 80_000 == delay_ms(3, MIDDLE, retry_after_seconds=60)
    assert LONGEST_MS == delay_ms(1, MIDDLE, retry_after_seconds=10**9)
