"""Limits, abandoned holds, paths and batches: LEDGER, I1, I2, I6, I8, I14."""

from datetime import timedelta

import pytest

from penstock.core.errors import Unavailable
from penstock.quota.budget import Scope
from penstock.quota.ledger import Answer
from penstock.quota.refusals import BudgetRefused
from support.ledger import (
    BY_TEST,
    LIMIT,
    Ledger,
    expired,
    held,
    reserve,
    settle,
    told,
    void,
)


@pytest.mark.parametrize(("pool", "balances"), [("paid", (0, 5, 40)), ("local", (0, 5, 0))])
async def test_an_abandoned_hold_resolves_in_the_next_reserve_of_its_bucket(
    ledger: Ledger, pool: str, balances: tuple[int, int, int]
) -> None:
    key_id = await ledger.new_key(LIMIT)
    await expired(ledger, key_id, pool)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 5))) == "ok"

    assert balances == await ledger.balances("key", key_id)


async def test_an_abandoned_hold_of_another_key_frees_the_shared_budget(ledger: Ledger) -> None:
    org_id, team_id, first = await ledger.new_path()
    await ledger.budget("org", org_id, 100)
    await ledger.budget("key", first, 100)
    assert told(await ledger.one(reserve(ledger.id(), first, 100, pool="local"))) == "ok"
    second = await ledger.another_key(team_id)
    assert told(await ledger.one(reserve(ledger.id(), second, 1))) == "BUDGET_EXCEEDED"

    await ledger.advance(timedelta(minutes=2))

    assert told(await ledger.one(reserve(ledger.id(), second, 100))) == "ok"
    assert await ledger.balances("key", first) == (0, 0, 0)


async def test_a_sweep_resolves_without_any_reserve(ledger: Ledger) -> None:
    await ledger.advance(timedelta(days=1))
    await ledger.store.sweep()  # what other tests left behind
    key_id = await ledger.new_key(LIMIT)
    await expired(ledger, key_id, "paid")

    assert await ledger.store.sweep() == 1

    assert await ledger.balances("key", key_id) == (0, 0, 40)
    assert await ledger.store.sweep() == 0


async def test_suspense_counts_against_the_limit(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = await expired(ledger, key_id, "paid")

    assert told(await ledger.one(reserve(ledger.id(), key_id, 61))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(settle(id_, 0))) == "ok"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 61))) == "ok"


@pytest.mark.parametrize("amount", [0, 1])
async def test_an_overage_blocks_further_reserves_even_of_nothing(
    ledger: Ledger, amount: int
) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = await held(ledger, key_id, "paid")
    assert told(await ledger.one(settle(id_, 101))) == "ok"

    assert told(await ledger.one(reserve(ledger.id(), key_id, amount))) == "BUDGET_EXCEEDED"


async def test_zero_is_a_limit(ledger: Ledger) -> None:
    key_id = await ledger.new_key(0)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 0))) == "ok"


async def test_no_budget_on_the_whole_path_is_refused(ledger: Ledger) -> None:
    _, _, key_id = await ledger.new_path()

    assert told(await ledger.one(reserve(ledger.id(), key_id, 0))) == "BUDGET_MISSING"


async def test_unlimited_admits_anything_and_has_no_rest(ledger: Ledger) -> None:
    key_id = await ledger.new_key(None)

    answer = await ledger.one(reserve(ledger.id(), key_id, 10**15))

    assert isinstance(answer, Answer)
    assert answer.remaining_nano_usd is None


async def test_a_reserve_holds_every_budget_of_the_path_or_none(ledger: Ledger) -> None:
    org_id, team_id, key_id = await ledger.new_path()
    await ledger.budget("org", org_id, 1000, "month")
    await ledger.budget("org", org_id, 900, "total")
    await ledger.budget("team", team_id, 50)
    await ledger.budget("key", key_id, 80)

    refused_ = await ledger.one(reserve(ledger.id(), key_id, 60))
    answer = await ledger.one(reserve(ledger.id(), key_id, 45))

    assert isinstance(refused_, BudgetRefused)
    facts = refused_.facts
    assert ("team", team_id) == (facts.account_kind, facts.account_id)
    assert (50, 0, 0, 0, 60) == (
        facts.limit,
        facts.posted,
        facts.held,
        facts.suspense,
        facts.requested,
    )
    assert isinstance(answer, Answer)
    assert answer.remaining_nano_usd == 5
    for kind, account_id, window in [
        ("org", org_id, "month"),
        ("org", org_id, "total"),
        ("team", team_id, "total"),
        ("key", key_id, "total"),
    ]:
        assert await ledger.balances(kind, account_id, window) == (0, 45, 0)


async def test_what_gives_room_in_a_batch_is_applied_before_what_takes_it(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    first, second = await held(ledger, key_id, "paid"), await held(ledger, key_id, "paid")

    outcomes = await ledger.apply(
        reserve(ledger.id(), key_id, 60),
        reserve(ledger.id(), key_id, 31),
        settle(first, 10),
        void(second),
        reserve(ledger.id(), key_id, 30),
    )

    assert [told(o) for o in outcomes] == ["ok", "BUDGET_EXCEEDED", "ok", "ok", "ok"]
    refused_ = outcomes[1]
    assert isinstance(refused_, BudgetRefused)
    assert (10, 60, 0, 31) == (
        refused_.facts.posted,
        refused_.facts.held,
        refused_.facts.suspense,
        refused_.facts.requested,
    )
    assert await ledger.balances("key", key_id) == (10, 90, 0)


async def test_a_suspended_or_ended_key_is_refused_and_its_holds_can_still_be_settled(
    ledger: Ledger,
) -> None:
    org_id, _, key_id = await ledger.new_path()
    await ledger.budget("org", org_id, LIMIT)
    id_ = await held(ledger, key_id, "paid")
    await ledger.accounts.update_account(BY_TEST, "org", org_id, suspended=True)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ACCOUNT_SUSPENDED"
    await ledger.accounts.update_account(BY_TEST, "org", org_id, suspended=False)
    await ledger.accounts.revoke_key(BY_TEST, key_id)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "KEY_REVOKED"

    assert told(await ledger.one(settle(id_, 30))) == "ok"
    assert await ledger.balances("org", org_id) == (30, 0, 0)


async def test_a_refusal_is_remembered_though_there_is_room_now(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_, other = ledger.id(), ledger.id()
    await ledger.apply(reserve(other, key_id, 100))
    first = await ledger.one(reserve(id_, key_id, 1))
    await ledger.apply(void(other))

    again = await ledger.one(reserve(id_, key_id, 1))

    assert isinstance(first, BudgetRefused)
    assert isinstance(again, BudgetRefused)
    assert first.facts == again.facts
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"


# Scope of a budget, what an attempt is, whether the budget applies to it.
SCOPES: list[tuple[Scope, dict[str, object], bool]] = [
    (Scope(), {}, True),
    (Scope(providers=("openai",)), {}, True),
    (Scope(providers=("azure",)), {}, False),
    (Scope(providers=("azure", "open*")), {}, True),
    (Scope(providers=("*ai",)), {}, True),
    (Scope(providers=("OpenAI",)), {}, False),
    (Scope(models=("gpt-4o",)), {}, False),
    (Scope(models=("gpt-4o*",)), {}, True),
    (Scope(models=("*mini",)), {}, True),
    (Scope(models=("gpt_4o_mini",)), {}, False),
    (Scope(models=("openai/gpt-4o*",)), {}, True),
    (Scope(models=("local/*",)), {}, False),
    (Scope(models=("local/*",)), {"provider": "local", "pool": "local"}, True),
    (Scope(models=("100%",)), {"model": "100 of them"}, False),
    (Scope(models=("100%",)), {"model": "100%"}, True),
    (Scope(models=("a\\b*",)), {"model": "a\\bc"}, True),
    (Scope(tags={"project": "x"}), {"tags": {"project": "x", "stage": "dev"}}, True),
    (Scope(tags={"project": "x"}), {"tags": {"project": "y"}}, False),
    (Scope(tags={"project": "x"}), {}, False),
    (Scope(tags={"project": "x", "stage": "dev"}), {"tags": {"project": "x"}}, False),
    (Scope(providers=("openai",), models=("*mini",)), {"model": "gpt-4o"}, False),
    (Scope(providers=("openai",), models=("*mini",)), {"pool": "local"}, True),
]


@pytest.mark.parametrize(("scope", "attempt", "applies"), SCOPES)
async def test_a_budget_applies_to_what_its_scope_says(
    ledger: Ledger, scope: Scope, attempt: dict[str, object], applies: bool
) -> None:
    key_id = await ledger.new_key(LIMIT)
    await ledger.budget("key", key_id, 5, name="narrow", scope=scope)

    answer = told(await ledger.one(reserve(ledger.id(), key_id, 6, **attempt)))

    assert answer == ("BUDGET_EXCEEDED" if applies else "ok")


async def test_where_no_budget_of_money_applies_nothing_is_spent(ledger: Ledger) -> None:
    _, _, key_id = await ledger.new_path()
    await ledger.budget("key", key_id, LIMIT, scope=Scope(models=("gpt-4o-mini",)))
    await ledger.budget("key", key_id, LIMIT, "day", unit="tokens")

    assert told(await ledger.one(reserve(ledger.id(), key_id, 0, model="o1"))) == "BUDGET_MISSING"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 0))) == "ok"


async def test_a_closed_budget_limits_nothing_any_more(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    narrow = await ledger.budget("key", key_id, 0, name="narrow")
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_EXCEEDED"

    await ledger.budgets.close_budget(BY_TEST, narrow, money=True)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"


async def test_what_more_abandoned_holds_than_a_batch_resolves_still_hold_is_refused_to_nobody(
    ledger: Ledger,
) -> None:
    """Of a router that died with many holds: who comes next is asked to come again."""
    key_id = await ledger.new_key(1100)
    for _ in range(4):
        await ledger.apply(*(reserve(ledger.id(), key_id, 1, pool="local") for _ in range(275)))
    await ledger.advance(timedelta(minutes=2))
    wanted = reserve(ledger.id(), key_id, 1100)

    answers = [await ledger.one(wanted) for _ in range(4)]

    assert [told(a) for a in answers] == ["ABANDONED_HOLDS", "ABANDONED_HOLDS", "ok", "ok"]
    assert isinstance(answers[0], Unavailable)
    assert await ledger.balances("key", key_id) == (0, 1100, 0)
