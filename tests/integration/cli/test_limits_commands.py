"""`penstock budget | limit | grant`, against a real ledger."""

import pytest

from penstock.core.money import NANO_PER_USD
from support.operating import Operator


async def path_of(operator: Operator) -> None:
    await operator.said("account", "create", "acme")
    await operator.said("account", "create", "search", "--org", "acme")
    await operator.said("keys", "create", "ci", "--team", "acme/search")


async def test_a_budget_is_changed_by_what_it_is_for(own_operator: Operator) -> None:
    await path_of(own_operator)
    ask, of = own_operator.json, ("--account", "key:ci")
    made = await ask("budget", "set", "5", *of, "--window", "month", "--soft", "80,95")
    assert (5 * NANO_PER_USD, "month", [80, 95]) == (
        made["limit_nano_usd"],
        made["name"],
        made["soft_percents"],
    )
    zoned = await ask("budget", "set", "7.50", *of, "--zone", "Europe/Berlin")
    assert (made["id"], [80, 95]) == (zoned["id"], zoned["soft_percents"])
    raised = await ask("budget", "set", "8", *of)
    assert (made["id"], "Europe/Berlin") == (raised["id"], raised["time_zone"])
    narrow = await ask("budget", "set", "2", *of, "--provider", "openai", "--tag", "job=x")
    assert "month-openai-job-x" == narrow["name"]
    assert {"job": "x"} == narrow["scope"]["tags"]
    own = await ask("budget", "set", "unlimited", *of, "--window", "week", "--name", "free")
    assert (True, "WINDOW_WEEK") == (own["unlimited"], own["window"])
    assert 3 == len((await ask("budget", "list", *of))["budgets"])
    assert (await ask("budget", "close", "free", *of))["closed"]
    assert 2 == len((await ask("budget", "list", *of))["budgets"])
    assert 3 == len((await ask("budget", "list", *of, "--closed"))["budgets"])
    assert "month-openai-job-x" in await own_operator.said("budget", "list")


async def test_a_change_is_told_by_what_was_before(own_operator: Operator) -> None:
    await own_operator.said("account", "create", "acme")
    said, ask = own_operator.said, own_operator.json
    words, berlin = ("budget", "set", "5", "--account", "acme"), ("--zone", "Europe/Berlin")
    assert last_line(await said("budget", "set", "500", *words[3:], *berlin)) == "created"
    changed = "changed: limit was 500.00 USD, zone was Europe/Berlin"
    assert last_line(await said(*words, "--zone", "UTC", "--dry-run")) == changed
    document = await ask(*words, "--zone", "UTC", "--dry-run")
    assert document["dry_run"]
    assert last_line(await said(*words, "--zone", "UTC")) == changed
    assert last_line(await said(*words)) == "nothing changed"
    document = await ask("budget", "set", "6", *words[3:])
    assert (6 * NANO_PER_USD, 5 * NANO_PER_USD) == (
        document["limit_nano_usd"],
        document["before"]["limit_nano_usd"],
    )
    assert "before" not in await ask(*words, "--window", "day")
    await said("budget", "close", "day")
    assert last_line(await said(*words, "--window", "day")) == "changed: state was closed"


async def test_a_change_of_limits_is_told_by_what_was_before(own_operator: Operator) -> None:
    await path_of(own_operator)
    words = ("limit", "set", "key:ci", "--requests")
    assert last_line(await own_operator.said(*words, "600/minute")) == "created"
    text = await own_operator.said(*words, "60/minute", "--tokens", "9/day")
    assert ["requests-minute: changed: limit was 600", "tokens-day: created"] == text.splitlines()[
        -2:
    ]
    document = await own_operator.json(*words, "70/minute", "--in-flight", "4", "--dry-run")
    assert [60, None] == [one.get("before", {}).get("limit") for one in document["limits"]]


def last_line(text: str) -> str:
    return text.splitlines()[-1]


async def test_scopes_that_are_spelled_alike_are_two_budgets(operator: Operator) -> None:
    key = f"key_{(await operator.ledger.new_path())[2]}"
    of = ("budget", "set", "1", "--account", key)
    made = [await operator.json(*of, "--model", model) for model in ("gpt-4o", "gpt-4o*", "gpt-4o")]
    assert ["month-gpt-4o", "month-gpt-4o-2", "month-gpt-4o"] == [one["name"] for one in made]


@pytest.mark.parametrize("window", ["minute", "hour", "day", "week", "month", "total"])
async def test_a_budget_has_every_window(operator: Operator, window: str) -> None:
    key = f"key_{(await operator.ledger.new_path())[2]}"
    made = await operator.json("budget", "set", "1", "--account", key, "--window", window)
    assert f"WINDOW_{window.upper()}" == made["window"]


async def test_rate_limits_are_set_together_or_not_at_all(own_operator: Operator) -> None:
    await path_of(own_operator)
    ask = own_operator.json
    words = ("limit", "set", "key:ci")
    told = await ask(*words, "--requests", "60/minute", "--tokens", "9/day", "--in-flight", "4")
    assert [
        ("requests-minute", 60),
        ("tokens-day", 9),
        ("in-flight-total", 4),
    ] == [(one["name"], one["limit"]) for one in told["limits"]]
    again = await ask(*words, "--in-flight", "5")
    assert told["limits"][2]["id"] == again["limits"][0]["id"]
    before = await ask("limit", "list")
    globs = [word for i in range(65) for word in ("--model", f"m{i}")]
    wrong = await own_operator.refused(*words, "--requests", "1/day", "--tokens", "1/day", *globs)
    assert "--model: takes at most 64 names" in wrong
    assert before == await ask("limit", "list")
    assert (await ask("limit", "close", "tokens-day"))["closed"]
    assert 2 == len((await ask("limit", "list", "--account", "key:ci"))["limits"])
    assert "there is no limit 'nothing'" in await own_operator.refused("limit", "close", "nothing")


async def test_credit_is_given_once_by_its_key(own_operator: Operator) -> None:
    await path_of(own_operator)
    ask = own_operator.json
    words = ("grant", "create", "18", "--account", "org:acme", "--key", "welcome", "--for", "3mo")
    made = await ask(*words, "--reason", "a start")
    assert (18 * NANO_PER_USD, "welcome", "a start", False) == (
        made["amount_nano_usd"],
        made["name"],
        made["reason"],
        made["commercial_use"],
    )
    assert made.pop("done_before") is False
    again = await ask(*words, "--reason", "a start")
    assert made | {"done_before": True} == again
    assert "(done before, nothing changed)" in await own_operator.said(
        *words, "--reason", "a start"
    )
    other = await own_operator.refused(*words[:2], "19", *words[3:])
    assert "GRANT_KEY_REUSED" in other
    assert [made] == (await ask("grant", "list", "--account", "org:acme"))["grants"]
    second = (*words[:6], "second")
    assert (await ask(*second, "--dry-run"))["done_before"] is False
    assert "done before" not in await own_operator.said(*second)
    assert (await ask(*second, "--dry-run"))["done_before"] is True
    await ask("grant", "end", "second")
    ended = await ask("grant", "end", "welcome")
    assert 18 * NANO_PER_USD == ended["lapsed_nano_usd"]
    assert "18.00" in await own_operator.said("grant", "list")
    assert "there is no grant 'nothing'" in await own_operator.refused("grant", "end", "nothing")
    backwards = ("--starts", "2999-02-01", "--expires", "2999-01-01")
    told = await own_operator.refused(*words[:6], "backwards", *backwards)
    assert "--expires or --for: does not lie after --starts" in told
