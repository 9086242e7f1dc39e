"""A refusal in an operator's words: options instead of fields, USD instead of nano-USD, names."""

import pytest

from support.operating import Operator


@pytest.fixture
async def acme(own_operator: Operator) -> Operator:
    await own_operator.said("account", "create", "acme")
    await own_operator.said("account", "create", "search", "--org", "acme")
    await own_operator.said("keys", "create", "ci", "--team", "acme/search")
    return own_operator


async def test_a_grant_that_is_repeated_otherwise_is_told_what_differs(acme: Operator) -> None:
    words = ("grant", "create", "18", "--account", "org:acme", "--key", "welcome", "--for", "3mo")
    await acme.said(*words, "--reason", "a start")
    told = await acme.refused("grant", "create", "19.5", *words[3:], "--reason", "another start")
    assert "GRANT_KEY_REUSED: --key 'welcome' was used before" in told
    assert "with another AMOUNT and reason" in told
    assert "AMOUNT: was 18.00 USD" in told
    assert "--reason: was 'a start'" in told
    assert "`penstock grant list` shows the one that is there" in told
    told = await acme.refused(*words[:8], "1y", "--model", "auto", "--reason", "a start")
    assert "--expires or --for: was '" in told
    assert "--model: was not given" in told
    assert "nano" not in told


async def test_an_adjustment_that_is_repeated_otherwise_is_told_what_differs(
    acme: Operator,
) -> None:
    await acme.said("budget", "set", "5", "--account", "key:ci")
    words = ("ledger", "adjust", "1.25", "--account", "key:ci", "--key", "k", "--reason", "why")
    await acme.said(*words)
    told = await acme.refused("ledger", "adjust", "2", *words[3:])
    assert "ADJUSTMENT_KEY_REUSED" in told
    assert "AMOUNT: was 1.25 USD" in told
    assert "_nano_usd" not in told


async def test_amounts_are_told_in_usd(acme: Operator) -> None:
    await acme.said("budget", "set", "5", "--account", "key:ci")
    words = ("--account", "key:ci", "--key", "k", "--reason", "why")
    told = await acme.refused("ledger", "adjust", "-1.5", *words)
    assert "ADJUSTMENT_BELOW_ZERO: 1.50 USD are to be given back, where 0.00 USD are" in told
    told = await acme.refused("ledger", "adjust", "9000000", *words)
    assert "AMOUNT_TOO_LARGE: AMOUNT: is 9000000.00 USD; at most 1000000.00 USD" in told
    assert "nano" not in told


async def test_a_missing_budget_is_told_by_name_with_what_makes_one(acme: Operator) -> None:
    words = ("--account", "key:ci", "--key", "k", "--reason", "why")
    told = await acme.refused("ledger", "adjust", "1", *words)
    assert "BUDGET_MISSING: key:acme/search/ci (key_3) has no open budget" in told
    assert "`penstock budget set 5 --account key:acme/search/ci` allows it 5 USD a month" in told
