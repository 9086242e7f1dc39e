"""`penstock ledger balance`: what is left, now and as it changes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from datetime import timedelta

import pytest

from penstock.quota.budget import Scope
from support.ledger import expired, held, reserve, settle, told
from support.operating import Operator

USD = 10**9


async def spent(operator: Operator, key_id: int, amount: int) -> None:
    ledger, id_ = operator.ledger, operator.ledger.id()
    assert told(await ledger.one(reserve(id_, key_id, amount))) == "ok"
    assert told(await ledger.one(settle(id_, amount))) == "ok"


async def test_a_keys_whole_path_is_told(operator: Operator) -> None:
    ledger = operator.ledger
    org, team, key = await ledger.new_path()
    await ledger.budget("org", org, None, "month", name="all")
    await ledger.budget("key", key, 10 * USD, name="own")
    await ledger.budget("team", team, 5, "minute", unit="requests", name="pace")
    await ledger.grant("team", team, 4 * USD)
    await spent(operator, key, 3 * USD)
    await held(ledger, key, "paid")

    told_json = await operator.json("ledger", "balance", f"key_{key}")
    own = next(b for b in told_json["budgets"] if b["name"] == "own")
    figures = [own[f"{n}_nano_usd"] for n in ("limit", "posted", "held", "remaining")]
    assert [10 * USD, 3 * USD, 40, 7 * USD - 40] == figures
    everything = next(b for b in told_json["budgets"] if b["name"] == "all")
    assert "limit_nano_usd" not in everything
    (grant,) = told_json["grants"]
    assert (f"team_{team}", USD - 40) == (grant["account_id"], grant["remaining_nano_usd"])
    (rate,) = told_json["rates"]
    assert ("requests", 5, 2) == (rate["unit"], rate["limit"], rate["used"])

    seen = await operator.said("ledger", "balance", f"key_{key}")
    own_line = next(line for line in seen.splitlines() if " own " in line)
    assert ["10.00", "3.00", "0.00000004", "0.00", "6.99999996"] == own_line.split()[3:8]
    assert "█" * 6 in own_line
    assert "30 %" in own_line
    assert "unlimited" in next(line for line in seen.splitlines() if " all " in line)
    assert "0.99999996" in next(line for line in seen.splitlines() if "grant_" in line)
    assert "40 %" in next(line for line in seen.splitlines() if " pace " in line)


async def test_a_team_is_told_of_its_organisations_credit(own_operator: Operator) -> None:
    said = own_operator.said
    await said("account", "create", "acme")
    await said("account", "create", "search", "--org", "acme")
    await said("keys", "create", "ci", "--team", "acme/search")
    assert "credit too" not in await said("ledger", "balance", "team:search")
    for usd, more in (("18", "--commercial-use"), ("2.5", "--non-commercial")):
        await said("grant", "create", usd, "--account", "org:acme", "--key", f"k{usd}", more)
    told_ = (
        "Its organisation has credit too, {} USD, which its keys may draw on{}:\n"
        "  penstock ledger balance org:acme\n"
    )
    free = "\n(some of it for non-commercial use only)"
    assert told_.format("20.50", free) in await said("ledger", "balance", "team:search")
    await said("account", "set", "team:search", "--commercial")
    assert told_.format("18.00", "") in await said("ledger", "balance", "team:search")
    lines = (await said("ledger", "balance", "key:ci")).splitlines()
    assert "org:acme" in next(line for line in lines if "18.00" in line)
    assert "credit too" not in "".join(lines)
    await said("grant", "end", "k18")
    assert "credit too" not in await said("ledger", "balance", "team:search")


async def test_a_team_is_told_what_its_organisations_credit_is_only_for(
    own_operator: Operator,
) -> None:
    said = own_operator.said
    await said("account", "create", "acme")
    await said("account", "create", "search", "--org", "acme")
    give = ("grant", "create", "2", "--account", "org:acme", "--commercial-use", "--key")
    await said(*give, "k1", "--model", "local/*")
    line = "Its organisation has credit too, {} USD, which its keys may draw on\n({}):\n"
    seen = await said("ledger", "balance", "team:search")
    assert line.format("2.00", "all of it for local/* only") in seen
    await said(*give, "k2")
    seen = await said("ledger", "balance", "team:search")
    assert line.format("4.00", "some of it for local/* only") in seen
    await said("grant", "create", "1", "--account", "org:acme", "--key", "k3", "--non-commercial")
    seen = await said("ledger", "balance", "team:search")
    assert "(some of it for local/*; or non-commercial use only):" in seen


async def test_a_team_is_told_of_its_organisations_budgets(own_operator: Operator) -> None:
    said = own_operator.said
    await said("account", "create", "acme")
    await said("account", "create", "search", "--org", "acme")
    needs = "an attempt needs a budget"
    assert needs in await said("ledger", "balance", "team:search")
    await said("budget", "set", "5", "--account", "org:acme")
    nothing = "no budget, credit or rate limit of its own\n"
    org = "  penstock ledger balance org:acme\n"
    seen = await said("ledger", "balance", "team:search")
    assert f"{nothing}Its organisation has budgets:\n{org}" == seen
    give = ("grant", "create", "2", "--account", "org:acme", "--key", "k", "--commercial-use")
    await said(*give)
    credit = "Its organisation has credit too, 2.00 USD, which its keys may draw on:\n"
    seen = await said("ledger", "balance", "team:search")
    assert f"{nothing}Its organisation has budgets.\n{credit}{org}" == seen
    await said("budget", "set", "1", "--account", "team:search")
    assert "has budgets" not in await said("ledger", "balance", "team:search")
    await said("budget", "close", "month", "--account", "team:search")
    await said("budget", "close", "month", "--account", "org:acme")
    seen = await said("ledger", "balance", "team:search")
    assert needs in seen
    assert "has budgets" not in seen


async def test_credit_that_does_not_apply_is_told_with_why(operator: Operator) -> None:
    ledger = operator.ledger
    org, team, key = await ledger.new_path(prepaid=True, commercial=True)
    await ledger.budget("org", org, None)
    small = Scope(models=("small",))
    day = timedelta(days=1)
    mine = await ledger.grant("key", key, 50, scope=small, ends_in=9 * day)
    later = await ledger.grant("team", team, 4 * USD, starts_in=day, ends_in=3 * day)
    free = await ledger.grant("org", org, 5 * USD, ends_in=2 * day, commercial_use=False)
    refused = await ledger.one(reserve(ledger.id(), key, 10))
    assert "CREDIT_EXHAUSTED" == told(refused)

    told_json = await operator.json("ledger", "balance", f"key_{key}")
    assert {f"grant_{later}": "not_started", f"grant_{free}": "non_commercial"} == {
        grant["grant_id"]: grant["state"] for grant in told_json["unusable_grants"]
    }
    (usable,) = told_json["grants"]
    assert (f"grant_{mine}", "usable", ["small"]) == (
        usable["grant_id"],
        usable["state"],
        usable["models"],
    )
    lines = (await operator.said("ledger", "balance", f"key_{key}")).splitlines()
    assert "small" in next(line for line in lines if f"grant_{mine}" in line)
    assert "has not begun" in next(line for line in lines if f"grant_{later}" in line)
    not_for = next(line for line in lines if f"grant_{free}" in line)
    assert "not for commercial accounts" in not_for
    assert not_for.split().count("5.00") == 2


async def test_suspense_counts_and_is_shaded(operator: Operator) -> None:
    key = await operator.ledger.new_key(100)
    await expired(operator.ledger, key, "paid")
    await operator.ledger.one(reserve(operator.ledger.id(), key, 1))  # it resolves the expired one
    (budget,) = (await operator.json("ledger", "balance", f"key_{key}"))["budgets"]
    assert (40, 1, 59) == tuple(budget[f"{n}_nano_usd"] for n in ("suspense", "held", "remaining"))
    assert "▒" * 8 in await operator.said("ledger", "balance", f"key_{key}")


async def test_without_an_account_it_is_the_ready_made_keys(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "name an account" in await operator.refused("ledger", "balance")
    key = await operator.ledger.new_key(7)
    monkeypatch.setenv("PENSTOCK_KEY_ID", f"key_{key}")
    (budget,) = (await operator.json("ledger", "balance"))["budgets"]
    assert 7 == budget["limit_nano_usd"]


async def test_an_account_that_has_nothing_is_told_what_follows(
    own_operator: Operator,
) -> None:
    said = own_operator.said
    await said("account", "create", "acme")
    await said("pool", "set", "openai", "--provider", "openai")
    nothing = "no budget, credit or rate limit of its own"
    needs = ": an attempt needs a budget of its key, team or organisation"
    assert f"{nothing}{needs}\n" == await said("ledger", "balance", "org:acme")
    assert f"{nothing}\n" == await said("ledger", "balance", "pool:openai")


async def test_what_does_not_exist_is_told_with_what_does(operator: Operator) -> None:
    await operator.ledger.new_path()
    told_ = await operator.refused("ledger", "balance", "org:nowhere")
    assert "there is no org, team, key or pool 'org:nowhere'" in told_


async def test_a_wrong_token_is_told(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await operator.ledger.new_key(7)
    monkeypatch.setenv("PENSTOCK_ADMIN_TOKEN", "stolen")
    told_ = await operator.refused("ledger", "balance", f"key_{key}")
    assert "SERVICE_TOKEN_INVALID" in told_
    assert "Set PENSTOCK_ADMIN_TOKEN" in told_


async def test_a_watch_tells_each_change_on_a_line(operator: Operator) -> None:
    key = await operator.ledger.new_key(100)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.cli", "--state", "state",
        "ledger", "balance", f"key_{key}", "--watch", "--interval-ms", "100", "--json",
        env=dict(os.environ), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        first = json.loads(await process.stdout.readline())
        await spent(operator, key, 30)
        seen = [json.loads(await process.stdout.readline())]
        while seen[-1]["budgets"][0]["posted_nano_usd"] < 30:
            seen.append(json.loads(await process.stdout.readline()))
        operator.quota.process.terminate()
        _, said = await process.communicate()
    assert 100 == first["budgets"][0]["remaining_nano_usd"]
    assert 70 == seen[-1]["budgets"][0]["remaining_nano_usd"]
    assert (1, True) == (process.returncode, b"ended the watch" in said)


@pytest.mark.parametrize(
    ("columns", "redrawn"), [(300, True), (80, True), (24, False)], ids=["wide", "narrow", "tiny"]
)
async def test_on_a_terminal_a_watch_is_drawn_in_place_where_it_fits(
    operator: Operator, columns: int, *, redrawn: bool
) -> None:
    key = await operator.ledger.new_key(100)
    ours, theirs = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.cli", "--state", "state",
        "ledger", "balance", f"key_{key}", "--watch",
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    async with asyncio.timeout(30):
        seen = await drawn(ours, "0.0000001 ")
        await spent(operator, key, 33)
        seen += await drawn(ours, "0.000000067", "33 %")
        process.send_signal(signal.SIGINT)
        # It ends once all that it drew has been read: a terminal holds 4 KiB.
        seen += await drawn_to_the_end(ours)
        assert 130 == await process.wait()
    os.close(ours)
    assert redrawn == ("\x1b[1A" in seen)
    columns_of = [line for line in seen.splitlines() if "limit USD" in line]
    assert len(columns_of) >= 2
    assert {columns_of[0]} == set(columns_of)


async def drawn(terminal: int, *texts: str) -> str:
    """What is drawn until all of these are."""
    seen = ""
    while not all(text in seen for text in texts):
        seen += (await asyncio.to_thread(os.read, terminal, 65_536)).decode(errors="replace")
    return seen


async def drawn_to_the_end(terminal: int) -> str:
    seen = b""
    with contextlib.suppress(OSError):  # so a terminal says that nobody writes to it any more
        while True:
            seen += await asyncio.to_thread(os.read, terminal, 65_536)
    return seen.decode(errors="replace")
