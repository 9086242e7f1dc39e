"""How what a provider billed is shared out: exact, bounded, the same in pages as at once."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.quota.reconcile.rule import Accounts, Group, Plan, Standing, base_of, plan

DAY = date(2026, 11, 1)
amounts = st.integers(min_value=0, max_value=10**15)


@given(st.lists(amounts, max_size=30), st.integers(0, 10**16), st.integers(1, 7), amounts)
def test_parts_sum_to_the_target_within_their_bounds(
    bounds: list[int], reported: int, size: int, exact: int
) -> None:
    total = sum(bounds)
    planned = plan(reported, Standing(exact_nano_usd=exact, bound_nano_usd=total))
    assert min(max(reported - exact, 0), total) == planned.target_nano_usd
    parts, reached = [], 0
    for n in range(0, len(bounds), size):
        parts += planned.parts(reached, bounds[n : n + size])
        reached += sum(bounds[n : n + size])
    assert planned.parts(0, bounds) == parts
    assert planned.target_nano_usd == sum(parts)
    assert all(0 <= part <= bound for part, bound in zip(parts, bounds, strict=True))
    for part, bound in zip(parts, bounds, strict=True):
        assert abs(part * total - planned.target_nano_usd * bound) < max(total, 1)


def test_an_attempt_that_came_later_gets_nothing_of_the_plan() -> None:
    assert [3, 4, 0] == Plan(7, 20).parts(0, [10, 10, 10])


def test_free_attempts_get_nothing() -> None:
    assert [0, 0] == Plan(0, 0).parts(0, [0, 0])


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-4-0613", "gpt-4-0613"),
        ("2024-07-18", "2024-07-18"),
    ],
)
def test_a_model_without_its_date(model: str, base: str) -> None:
    assert base == base_of(model)


@pytest.mark.parametrize(
    ("project", "key", "account"),
    [("p", "k", 1), ("x", "k", 2), ("p", "x", 3), ("x", "x", 4)],
)
def test_the_most_specific_source_counts(project: str, key: str, account: int) -> None:
    accounts = Accounts({("p", "k"): 1, ("", "k"): 2, ("p", ""): 3, ("", ""): 4})
    assert Group(DAY, "m", account) == accounts.group(DAY, "m", project, key)


def test_a_project_that_nobody_stands_behind_is_not_ours() -> None:
    found = Accounts({("p", ""): 1}).group(DAY, "m", "q", "")
    assert not found.is_ours
    assert Accounts({}).group(DAY, "m", "q", "").is_ours
