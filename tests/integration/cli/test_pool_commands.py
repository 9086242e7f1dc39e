"""`penstock pool`: closing one, and names that the catalogue does not have."""

import asyncio
import os
import shutil
from functools import partial
from pathlib import Path

from penstock.cli import processes
from penstock.cli.options import DEFAULT_CONFIG
from penstock.cli.state import State
from support.ledger import reserve, settle, told
from support.operating import Operator

POOL = ("pool", "set", "openai", "--provider", "openai")


async def test_a_closed_pool_leaves_its_provider_to_another(own_operator: Operator) -> None:
    ask = own_operator.json
    await ask(*POOL, "--prepaid")
    tried = await ask("pool", "close", "openai", "--dry-run")
    assert (True, True, []) == (tried["dry_run"], tried["closed"], tried["providers"])
    assert ["openai"] == (await ask("pool", "list"))["pools"][0]["providers"]
    closed = await ask("pool", "close", "pool:openai", "--reason", "the contract is over")
    assert closed["closed"]
    assert [] == (await ask("pool", "list"))["pools"]
    assert [closed] == (await ask("pool", "list", "--closed"))["pools"]
    assert "closed" in await own_operator.said("pool", "list", "--closed")
    entries = await ask("ledger", "entries", "--account", "pool:openai", "--all")
    assert "the contract is over" == entries["entries"][0]["reason"]
    await ask("pool", "set", "other", "--provider", "openai")
    taken = await own_operator.refused(*POOL)
    assert "PROVIDER_IN_OTHER_POOL" in taken
    await ask("pool", "close", "other")
    assert "pool 'openai' is closed: say --provider" in await own_operator.refused(
        "pool", "set", "openai"
    )
    again = await ask(*POOL)
    assert (closed["id"], True, False) == (again["id"], again["prepaid"], again["closed"])
    assert "there is no pool 'azure'" in await own_operator.refused("pool", "close", "azure")


async def test_a_pool_in_use_is_not_closed(own_operator: Operator) -> None:
    await own_operator.said(*POOL)
    ledger = own_operator.ledger
    key_id = await ledger.new_key(None)
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(reserve(id_, key_id, 25 * 10**7)))
    refused = await own_operator.refused("pool", "close", "openai")
    assert "POOL_IN_USE: pool 'openai' is in use: 1 running attempts hold 0.25 USD" in refused
    assert "`penstock ledger entries --account pool:NAME`" in refused
    await ledger.one(settle(id_, 1))
    assert (await own_operator.json("pool", "close", "openai"))["closed"]


async def warned_by(operator: Operator, *words: str) -> str:
    """What is told beside the answer of a command that succeeds."""
    result = await operator.ask(*words)
    assert 0 == result.exit_code, result.output
    return " ".join(result.stderr.split())


async def test_where_a_stand_in_plays_the_providers_own_name_is_warned_of(
    own_operator: Operator,
) -> None:
    warned = partial(warned_by, own_operator)
    state = State.at(Path("state"))
    state.make()
    me = processes.Record.of("penstock up", os.getpid())
    options = {"config": str(DEFAULT_CONFIG), "paid": "stand-in"}
    processes.save(state, processes.Running(me, (), options))
    await own_operator.said("account", "create", "acme")
    told_ = (
        "'openai' applies to nothing with PAID=stand-in, as it runs here: its attempts are named"
        " 'openai-stand-in'"
    )
    budget = ("budget", "set", "5", "--account", "org:acme")
    limit = ("limit", "set", "org:acme", "--requests", "9/day")
    grant = ("grant", "create", "5", "--account", "org:acme", "--key", "k")
    for words in (budget, limit, grant):
        assert f"scope provider {told_}" in await warned(*words, "--provider", "openai")
    assert f"provider {told_}" in await warned(*POOL)
    assert "named 'openai-stand-in/gpt-4o'" in await warned(*budget, "--model", "openai/gpt-4o")
    assert "matches no model" in await warned(*budget, "--model", "openai/gpt-99")
    for right in (("--provider", "openai-stand-in"), ("--provider", "openai*")):
        assert "" == await warned(*budget, *right)
    processes.save(state, processes.Running(me, (), options | {"paid": ""}))
    assert "" == await warned(*budget, "--provider", "openai")


async def test_names_that_the_catalogue_lacks_are_warned_of_and_set(
    own_operator: Operator,
) -> None:
    warned = partial(warned_by, own_operator)
    await own_operator.said("account", "create", "acme")
    budget = ("budget", "set", "5", "--account", "org:acme")
    assert "" == await warned(*budget, "--model", "gpt-5o")  # no catalogue is known here
    await asyncio.to_thread(shutil.copy, DEFAULT_CONFIG, "penstock.yaml")
    strange = await warned(*budget, "--window", "day", "--model", "gpt-4o-minni")
    assert (
        "scope model 'gpt-4o-minni' matches no model of penstock.yaml: it will apply to nothing"
        " until one is there (did you mean 'gpt-4o-mini'?)"
    ) in strange
    limit = ("limit", "set", "org:acme", "--requests", "9/day")
    assert "scope provider 'azure*' matches no provider" in await warned(
        *limit, "--provider", "azure*"
    )
    grant = ("grant", "create", "5", "--account", "org:acme")
    wrong = ("--provider", "local", "--model", "gpt-4o")
    assert "no provider of this scope has a model of it" in await warned(
        *grant, "--key", "a", *wrong
    )
    assert "provider 'opnai' is not in penstock.yaml" in await warned(
        "pool", "set", "p", "--provider", "opnai"
    )
    assert "'local' is no paid provider" in await warned("pool", "set", "q", "--provider", "local")
    for right in (
        ("--model", "gpt-4o*"),
        ("--model", "openai/gpt-4o", "--provider", "openai"),
        ("--model", "local/*"),
        ("--provider", "openai-stand-in"),
        ("--tag", "job=x"),
    ):
        assert "" == await warned(*grant, "--key", "-".join(right), *right)
    assert "" == await warned("pool", "set", "r", "--provider", "openai-stand-in")
    assert "gpt-4o-minni" in await own_operator.said("budget", "list")
