"""Limits, abandoned holds, paths and batches: LEDGER, I1, I2, I6, I8, I14."""

from datetime import timedelta

import pytest

from penstock.quota.account import new_secret
from penstock.quota.ledger import Answer, BudgetRefused
from support.ledger import (
    LIMIT,
    OPEN_POLICY,
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
    second = await _another_key(ledger, team_id)
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
    refusal = refused_.refusal
    assert ("team", team_id) == (refusal.account_kind, refusal.account_id)
    assert (50, 0, 0, 0, 60) == (
        refusal.limit_nano_usd,
        refusal.posted_nano_usd,
        refusal.held_nano_usd,
        refusal.suspense_nano_usd,
        refusal.requested_nano_usd,
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


async def test_operations_of_a_batch_see_each_other_in_order(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    first, second, third = (ledger.id() for _ in range(3))

    outcomes = await ledger.apply(
        reserve(first, key_id, 60),
        reserve(second, key_id, 60),
        settle(first, 20),
        reserve(third, key_id, 60),
        reserve(first, key_id, 60),
        void(third),
    )

    assert [told(o) for o in outcomes] == ["ok", "BUDGET_EXCEEDED", "ok", "ok", "ok", "ok"]
    assert isinstance(outcomes[1], BudgetRefused)
    assert outcomes[1].refusal.held_nano_usd == 60
    assert await ledger.balances("key", key_id) == (20, 0, 0)


async def _another_key(ledger: Ledger, team_id: int) -> int:
    return (await ledger.accounts.create_key(team_id, "key", OPEN_POLICY, new_secret())).id
