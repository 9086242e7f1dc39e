import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core.money import INT64_MAX, Price, format_usd, parse_usd

NANO = st.integers(min_value=0, max_value=INT64_MAX)
TOKENS = st.integers(min_value=0, max_value=10_000_000)
RATE = st.integers(min_value=0, max_value=10**12)


@given(NANO)
def test_every_amount_survives_being_written_and_read(nano_usd):
    assert nano_usd == parse_usd(format_usd(nano_usd))


def test_the_sum_that_floats_get_wrong_is_exact():
    # 25.000000000000004, as other ledgers show it.
    assert "25.00" == format_usd(sum(parse_usd("0.1") for _ in range(250)))


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "NaN", "inf", "1e400", "0.0000000001", "9223372036.854775808"]
)
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match="USD"):
        parse_usd(text)


@pytest.mark.parametrize(
    ("nano_usd", "expected"),
    [(0, "0.00"), (1, "0.000000001"), (1_500_000_000, "1.50"), (-20_000_000, "-0.02")],
)
def test_amounts_are_written_exactly(nano_usd, expected):
    assert expected == format_usd(nano_usd)


def test_a_cost_is_rounded_up_once():
    price = Price(1, 1, 1)
    assert 1 == price.cost_nano_usd(prompt_tokens=1, completion_tokens=1)
    assert 2 == price.cost_nano_usd(prompt_tokens=500_001, completion_tokens=500_000)


@given(RATE, RATE, RATE, TOKENS, TOKENS, st.data())
def test_no_split_of_the_prompt_costs_more_than_the_bound(fresh, cached, out, prompt, done, data):
    price = Price(fresh, cached, out)
    part = data.draw(st.integers(min_value=0, max_value=prompt))
    cost = price.cost_nano_usd(
        prompt_tokens=prompt, completion_tokens=done, cached_prompt_tokens=part
    )
    assert cost <= price.bound_nano_usd(prompt_tokens=prompt, completion_tokens=done)
