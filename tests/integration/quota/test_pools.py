"""A provider's account: its credit and its limits, shared by all who use it (LEDGER, I2, I8)."""

from datetime import timedelta

import pytest

from penstock.quota.refusals import CreditRefused, RateRefused
from support.ledger import BY_TEST, Ledger, extend, reserve, settle, told, void

DAY = timedelta(days=1)


async def keys_of_two_organisations(ledger: Ledger) -> tuple[int, int]:
    return await ledger.new_key(None), await ledger.new_key(None)


async def test_its_limit_is_shared_by_organisations_and_by_providers(ledger: Ledger) -> None:
    pool_id, (one, two) = await ledger.pool(providers=2)
    await ledger.budget("pool", pool_id, 3, "minute", unit="requests")
    first, second = await keys_of_two_organisations(ledger)

    answers = await ledger.apply(
        reserve(ledger.id(), first, provider=one),
        reserve(ledger.id(), second, provider=two),
        reserve(ledger.id(), second, provider=one),
        reserve(ledger.id(), first, provider=two),
        reserve(ledger.id(), first, provider="another"),
        reserve(ledger.id(), first, provider=one, pool="local"),
    )

    assert [told(a) for a in answers] == ["ok", "ok", "ok", "RATE_LIMITED", "ok", "ok"]
    refused = answers[3]
    assert isinstance(refused, RateRefused)
    assert ("pool", pool_id) == (refused.facts.account_kind, refused.facts.account_id)
    assert await ledger.balances("pool", pool_id, "minute", "requests") == (0, 3, 0)


async def test_an_abandoned_hold_of_another_organisation_frees_it(ledger: Ledger) -> None:
    pool_id, (provider,) = await ledger.pool()
    await ledger.budget("pool", pool_id, 1, unit="in_flight")
    first, second = await keys_of_two_organisations(ledger)
    await ledger.apply(reserve(ledger.id(), first, provider=provider))
    refused = await ledger.one(reserve(ledger.id(), second, provider=provider))
    assert isinstance(refused, RateRefused)
    assert refused.retry_after_seconds == 60

    await ledger.advance(timedelta(seconds=60))

    assert told(await ledger.one(reserve(ledger.id(), second, provider=provider))) == "ok"
    assert await ledger.balances("key", first) == (0, 0, 10)


async def test_a_budget_of_the_pool_alone_is_no_budget_of_the_tenant(ledger: Ledger) -> None:
    pool_id, (provider,) = await ledger.pool()
    await ledger.budget("pool", pool_id, 100)
    _, _, key_id = await ledger.new_path()

    assert told(await ledger.one(reserve(ledger.id(), key_id, provider=provider))) == (
        "BUDGET_MISSING"
    )


async def test_a_pools_budget_holds_with_the_tenants_or_not_at_all(ledger: Ledger) -> None:
    pool_id, (provider,) = await ledger.pool()
    await ledger.budget("pool", pool_id, 50, "month")
    key_id = await ledger.new_key(100)
    id_ = ledger.id()

    assert told(await ledger.one(reserve(ledger.id(), key_id, 51, provider=provider))) == (
        "BUDGET_EXCEEDED"
    )
    assert await ledger.balances("key", key_id) == (0, 0, 0)
    await ledger.apply(reserve(id_, key_id, 40, provider=provider))
    assert await ledger.balances("pool", pool_id, "month") == (0, 40, 0)
    await ledger.apply(settle(id_, 30))
    assert await ledger.balances("pool", pool_id, "month") == (30, 0, 0)


async def test_a_prepaid_pools_credit_ends_for_everybody(ledger: Ledger) -> None:
    pool_id, (provider,) = await ledger.pool(prepaid=True)
    credit = await ledger.grant("pool", pool_id, 100, ends_in=DAY)
    first, second = await keys_of_two_organisations(ledger)
    await ledger.apply(reserve(ledger.id(), first, 70, provider=provider))

    refused = await ledger.one(reserve(ledger.id(), second, 31, provider=provider))

    assert isinstance(refused, CreditRefused)
    assert ("pool", pool_id, 30) == (
        refused.facts.account_kind,
        refused.facts.account_id,
        refused.facts.available,
    )
    assert told(await ledger.one(reserve(ledger.id(), second, 30, provider=provider))) == "ok"
    assert await ledger.credit(credit) == (0, 100, 0, 0)


async def test_a_pool_without_prepayment_uses_its_credit_first(ledger: Ledger) -> None:
    pool_id, (provider,) = await ledger.pool()
    credit = await ledger.grant("pool", pool_id, 30)
    key_id = await ledger.new_key(1000)
    id_ = ledger.id()

    assert told(await ledger.one(reserve(id_, key_id, 50, provider=provider))) == "ok"
    assert await ledger.credit(credit) == (0, 30, 0, 0)
    await ledger.apply(settle(id_, 20))
    assert await ledger.credit(credit) == (20, 0, 0, 0)


async def test_both_sides_hold_the_same_money_each_in_its_own_credit(ledger: Ledger) -> None:
    pool_id, (provider,) = await ledger.pool(prepaid=True)
    pool_first = await ledger.grant("pool", pool_id, 15, ends_in=DAY)
    pool_second = await ledger.grant("pool", pool_id, 100)
    org_id, _, key_id = await ledger.new_path(prepaid=True)
    await ledger.budget("org", org_id, 100)
    tenant_first = await ledger.grant("org", org_id, 25, ends_in=DAY)
    tenant_second = await ledger.grant("key", key_id, 100)
    grants = (tenant_first, tenant_second, pool_first, pool_second)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 20, provider=provider))
    await ledger.apply(extend(id_, 40))
    assert [25, 15, 15, 25] == [(await ledger.credit(g))[1] for g in grants]

    await ledger.apply(settle(id_, 50))

    assert [25, 25, 15, 35] == [(await ledger.credit(g))[0] for g in grants]
    assert [0, 0, 0, 0] == [(await ledger.credit(g))[1] for g in grants]


async def test_a_commercial_tenant_uses_a_pools_free_credit(ledger: Ledger) -> None:
    """What the provider allows its customer is not the tenant's affair."""
    pool_id, (provider,) = await ledger.pool(prepaid=True)
    await ledger.grant("pool", pool_id, 100, commercial_use=False)
    org_id, _, key_id = await ledger.new_path(commercial=True)
    await ledger.budget("org", org_id, 100)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1, provider=provider))) == "ok"


async def test_a_suspended_pool_refuses_everybody(ledger: Ledger) -> None:
    pool_id, (provider,) = await ledger.pool()
    key_id = await ledger.new_key(100)
    await ledger.accounts.update_account(BY_TEST, "pool", pool_id, suspended=True)

    assert told(await ledger.one(reserve(ledger.id(), key_id, provider=provider))) == (
        "ACCOUNT_SUSPENDED"
    )


@pytest.mark.parametrize("end", ["settle", "void", "expire"])
async def test_every_end_gives_back_the_same_on_both_sides(ledger: Ledger, end: str) -> None:
    pool_id, (provider,) = await ledger.pool(prepaid=True)
    await ledger.budget("pool", pool_id, 100)
    credit = await ledger.grant("pool", pool_id, 100)
    org_id, _, key_id = await ledger.new_path(prepaid=True)
    await ledger.budget("org", org_id, 100)
    grant = await ledger.grant("org", org_id, 100)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 40, provider=provider))
    if end == "settle":
        await ledger.apply(settle(id_, 30))
        expected = (30, 0, 0)
    elif end == "void":
        await ledger.apply(void(id_))
        expected = (0, 0, 0)
    else:
        await ledger.advance(timedelta(minutes=2))
        await ledger.store.sweep()
        expected = (0, 0, 40)

    assert expected == await ledger.balances("org", org_id)
    assert expected == await ledger.balances("pool", pool_id)
    assert (*expected, 0) == await ledger.credit(grant) == await ledger.credit(credit)
