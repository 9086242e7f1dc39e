"""`penstock ledger entries | adjust | resolve | usage`."""

import json
from typing import Any

import pytest

from penstock.core.ids import uuid7
from support.ledger import expired, reserve, settle, told
from support.operating import Operator


async def spent(operator: Operator, key_id: int, amount: int, **changes: Any) -> str:
    ledger, id_ = operator.ledger, operator.ledger.id()
    assert told(await ledger.one(reserve(id_, key_id, amount, **changes))) == "ok"
    assert told(await ledger.one(settle(id_, amount))) == "ok"
    return id_


async def test_each_filter_finds_its_entries_and_no_other(operator: Operator) -> None:
    key = await operator.ledger.new_key(1_000)
    request = uuid7()
    mine = {"end_user": "ada", "tags": {"job": "nightly", "tier": "a"}, "request_id": request}
    id_ = await spent(operator, key, 5, provider="azure", model="gpt-4o", **mine)
    await spent(operator, key, 6)
    of_key = ("--key", f"key_{key}")
    for filters in (
        ("--reservation", id_),
        ("--request", request),
        (*of_key, "--provider", "azure"),
        (*of_key, "--model", "gpt-4o"),
        (*of_key, "--user", "ada"),
        ("--account", f"key_{key}", "--tag", "job=nightly", "--tag", "tier=a"),
    ):
        found = (await operator.json("ledger", "entries", *filters))["entries"]
        assert {id_} == {e["reservation_id"] for e in found}, filters
        assert ["settle", "reserve"] == [e["operation"] for e in found], filters
    assert [] == (await operator.json("ledger", "entries", *of_key, "--tag", "job=x"))["entries"]
    settled = (await operator.json("ledger", "entries", *of_key, "--operation", "settle"))[
        "entries"
    ]
    assert [6, 5] == [e["posted_nano_usd"] for e in settled]


async def test_since_and_until_bound_the_time(operator: Operator) -> None:
    key = await operator.ledger.new_key(1_000)
    await spent(operator, key, 5)
    of_key = ("ledger", "entries", "--key", f"key_{key}", "--operation", "settle")
    day = operator.ledger.now.date().isoformat()
    assert 1 == len((await operator.json(*of_key, "--since", day))["entries"])
    assert [] == (await operator.json(*of_key, "--until", day))["entries"]
    told = await operator.refused(*of_key, "--since", day, "--until", day)
    assert f"--until {day} does not lie after --since {day}" in told


async def test_pages_follow_each_other_to_the_last(operator: Operator) -> None:
    key = await operator.ledger.new_key(1_000)
    ids = [await spent(operator, key, n) for n in range(1, 6)]
    of_key = ("ledger", "entries", "--key", f"key_{key}", "--operation", "settle")
    first = await operator.json(*of_key, "--page-size", "2")
    assert ids[:2:-1] == [e["reservation_id"] for e in first["entries"]]
    token = first["next_page_token"]
    second = await operator.json(*of_key, "--page-size", "2", "--page-token", token)
    assert ids[2:0:-1] == [e["reservation_id"] for e in second["entries"]]
    every = await operator.json(*of_key, "--page-size", "2", "--all")
    assert (ids[::-1], "") == (
        [e["reservation_id"] for e in every["entries"]],
        every["next_page_token"],
    )
    seen = await operator.said(*of_key, "--page-size", "2")
    assert f"there are more: --page-token {token}, or --all" in seen
    seen = await operator.said(*of_key, "--page-size", "2", "--all")
    assert all(id_ in seen for id_ in ids)


async def test_who_changed_what_and_why_is_told(operator: Operator) -> None:
    key = await operator.ledger.new_key(1_000)
    seen = await operator.said("ledger", "entries", "--account", f"key_{key}")
    line = next(line for line in seen.splitlines() if "configure" in line)
    assert "by test, “a test”" in line


async def test_an_adjustment_is_made_once_and_kept_with_who_and_why(operator: Operator) -> None:
    key = await operator.ledger.new_key(10**9)
    asked = ("ledger", "adjust", "0.25", "--account", f"key_{key}", "--key", uuid7())
    why = ("--reason", "invoice 17: “late” fee", "--actor", "Zoë")
    tried = await operator.json(*asked, *why, "--dry-run")
    assert (True, 250_000_000) == (tried["dry_run"], tried["posted_nano_usd"])
    assert (0, 0, 0) == await operator.ledger.balances("key", key)
    assert not tried["done_before"]
    made = await operator.json(*asked, *why)
    again = await operator.json(*asked, *why)
    assert (False, True) == (made["done_before"], again["done_before"])
    assert made["id"] == again["id"]
    assert "(done before, nothing changed)" in await operator.said(*asked, *why)
    assert again["done_before"] is (await operator.json(*asked, *why, "--dry-run"))["done_before"]
    assert ("adjust", "Zoë", "invoice 17: “late” fee") == (
        made["operation"],
        made["actor"],
        made["reason"],
    )
    back = ("ledger", "adjust", "-0.1", "--account", f"key_{key}", "--key", uuid7(), *why)
    seen = await operator.said(*back)
    assert "-0.10" in seen
    assert "done before" not in seen
    assert (150_000_000, 0, 0) == await operator.ledger.balances("key", key)


async def test_an_adjustment_says_on_which_budgets_it_is_posted(own_operator: Operator) -> None:
    said = own_operator.said
    for words in (
        ("account", "create", "acme"),
        ("account", "create", "search", "--org", "acme"),
        ("account", "create", "sales", "--org", "acme"),
        ("keys", "create", "ci", "--team", "acme/search"),
        ("budget", "set", "500", "--account", "org:acme"),
        ("budget", "set", "20", "--account", "team:search", "--window=day", "--provider=openai"),
        ("budget", "set", "9", "--account", "team:acme/search", "--name", "old"),
        ("budget", "close", "old"),
        ("budget", "set", "5", "--account", "key:ci", "--window", "total"),
        ("budget", "set", "7", "--account", "team:acme/sales", "--window", "week"),
    ):
        await said(*words)
    asked = ("ledger", "adjust", "1.25", "--account", "team:acme/search", "--key", "k")
    asked = (*asked, "--reason", "invoice 17")
    for more in (("--dry-run",), (), ()):
        told_json = await own_operator.json(*asked, *more)
        whole = [(b["name"], b["amount_nano_usd"]) for b in told_json["posted_on"]]
        assert [("month", 1_250_000_000), ("day-openai", 1_250_000_000)] == whole
    assert told_json["done_before"]
    budgets = (await own_operator.json("budget", "list", "--closed"))["budgets"]
    posted = {b["name"]: b["posted_nano_usd"] for b in budgets}
    assert {"month", "day-openai"} == {name for name, amount in posted.items() if amount}

    lines = (await said(*(w if w != "k" else "k2" for w in asked), "--dry-run")).splitlines()
    (scoped,) = [line for line in lines if "day-openai" in line]
    assert ["day-openai", "budget_2", "team:search", "openai", "1.25"] == scoped.split()
    assert "key:ci" not in "".join(lines)


async def test_one_attempt_is_adjusted_where_it_lay(operator: Operator) -> None:
    key = await operator.ledger.new_key(1_000)
    id_ = await spent(operator, key, 100)
    minus = ("ledger", "adjust", "-0.00000004", "--reservation", id_, "--reason", "refund")
    entry = await operator.json(*minus, "--key", uuid7())
    assert (-40, id_) == (entry["posted_nano_usd"], entry["reservation_id"])
    assert (60, 0, 0) == await operator.ledger.balances("key", key)
    more = ("ledger", "adjust", "-0.00000061", "--reservation", id_, "--reason", "refund")
    assert "ADJUSTMENT_BELOW_ZERO" in await operator.refused(*more, "--key", uuid7())
    assert (60, 0, 0) == await operator.ledger.balances("key", key)


@pytest.mark.parametrize(
    ("words", "told_"),
    [
        (("1", "--account", "key_1", "--key", "k"), "--reason is missing"),
        (("1", "--account", "key_1", "--key", "k", "--reason", " "), "or blank: say why"),
        (("1", "--key", "k", "--reason", "r"), "--account or --reservation: one"),
        (("1", "--account", "a", "--reservation", "r", "--key", "k", "--reason", "r"), "one of"),
        (("--1", "--account", "a", "--key", "k", "--reason", "r"), "there is no option --1"),
        (("1e-10", "--reservation", "r", "--key", "k", "--reason", "r"), "finer than a nano-USD"),
        (("nan", "--reservation", "r", "--key", "k", "--reason", "r"), "no finite amount"),
        (("0", "--reservation", "r", "--key", "k", "--reason", "r"), "AMOUNT_ZERO"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
async def test_a_bad_adjustment_is_refused(
    operator: Operator, words: tuple[str, ...], told_: str
) -> None:
    said = await operator.refused("ledger", "adjust", *words)
    if told_ == "AMOUNT_ZERO":
        assert "is 0: there is nothing to adjust" in said
    else:
        assert told_ in said


async def test_suspense_is_resolved_by_hand(operator: Operator) -> None:
    ledger = operator.ledger
    key = await ledger.new_key(1_000)
    id_ = await expired(ledger, key, "paid")
    await ledger.one(reserve(ledger.id(), key, 0))  # it moves the expired one to suspense
    of_key = ("ledger", "entries", "--key", f"key_{key}", "--operation")
    (found,) = (await operator.json(*of_key, "expire"))["entries"]
    assert (id_, 40) == (found["reservation_id"], found["suspense_delta_nano_usd"])
    asked = ("ledger", "resolve", id_, "0.00000003", "--reason", "the dashboard says so")
    tried = await operator.json(*asked, "--dry-run")
    assert (True, 30, 10) == (
        tried["dry_run"],
        tried["posted_nano_usd"],
        tried["released_nano_usd"],
    )
    assert (0, 0, 40) == await ledger.balances("key", key)
    seen = await operator.said(*asked, "--actor", "ops")
    assert "0.00000003 USD posted, 0.00000001 USD free again" in seen
    assert (30, 0, 0) == await ledger.balances("key", key)
    newest, *_ = (await operator.json(*of_key, "configure"))["entries"]
    assert ("ops", "the dashboard says so") == (newest["actor"], newest["reason"])
    assert id_ == json.loads(newest["detail_json"])["before"]["reservation_id"]
    (settled,) = (await operator.json(*of_key, "late_settle"))["entries"]
    assert "RESOLVED_BY_OPERATOR" == settled["outcome"]


async def test_what_cannot_be_resolved_is_told(operator: Operator) -> None:
    why = ("--reason", "x")
    assert "is not negative" in await operator.refused("ledger", "resolve", uuid7(), "-1", *why)
    unknown = await operator.refused("ledger", "resolve", operator.ledger.id(), "1", *why)
    assert "RESERVATION_UNKNOWN" in unknown
    assert "penstock ledger entries --request ID" in unknown


async def test_usage_counts_adjustments_of_accounts_too(operator: Operator) -> None:
    ledger = operator.ledger
    org, team, key = await ledger.new_path()
    await ledger.budget("org", org, 10**9)
    await spent(operator, key, 500)
    adjust = ("ledger", "adjust", "0.000000007", "--account", f"team_{team}", "--reason", "fee")
    await operator.said(*adjust, "--key", uuid7())
    of_org = ("--account", f"org_{org}")
    found = await operator.json("ledger", "usage", *of_org)
    assert 507 == found["total_posted_nano_usd"]
    assert [("", 7), (f"key_{key}", 500)] == [
        (row["key_id"], row["posted_nano_usd"]) for row in found["rows"]
    ]
    assert found == await operator.json("usage", *of_org)
    seen = await operator.said("ledger", "usage", *of_org)
    assert "adjustments" in next(line for line in seen.splitlines() if "team:" in line)
    assert "507" in seen.splitlines()[-2]
