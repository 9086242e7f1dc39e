"""Prepaid credit: when it may be used, in which order, what returns (LEDGER, I5, I6, I11)."""

from datetime import timedelta

import pytest

from penstock.quota.budget import Scope
from penstock.quota.refusals import CreditRefused
from support.ledger import BY_TEST, Ledger, extend, reserve, settle, told, void

DAY = timedelta(days=1)


async def paying_path(ledger: Ledger, **org: bool) -> tuple[int, int, int]:
    """With an unlimited budget on the organisation."""
    path = await ledger.new_path(**org)
    await ledger.budget("org", path[0], None)
    return path


async def test_the_soonest_expiring_is_drained_first_whoever_has_it(ledger: Ledger) -> None:
    org_id, team_id, key_id = await paying_path(ledger)
    never = await ledger.grant("key", key_id, 100)
    third = await ledger.grant("org", org_id, 10, ends_in=3 * DAY)
    first = await ledger.grant("key", key_id, 10, ends_in=DAY)
    second = await ledger.grant("team", team_id, 10, ends_in=2 * DAY)
    id_ = ledger.id()

    await ledger.apply(reserve(id_, key_id, 35))
    grants = (first, second, third, never)
    assert [10, 10, 10, 5] == [(await ledger.credit(g))[1] for g in grants]

    await ledger.apply(settle(id_, 12))
    assert [(10, 0), (2, 0), (0, 0), (0, 0)] == [(await ledger.credit(g))[:2] for g in grants]


async def test_of_two_that_end_together_the_older_goes_first(ledger: Ledger) -> None:
    _, _, key_id = await paying_path(ledger)
    older, newer = [await ledger.grant("key", key_id, 10, ends_in=DAY) for _ in range(2)]

    await ledger.apply(reserve(ledger.id(), key_id, 11))

    assert (10, 1) == ((await ledger.credit(older))[1], (await ledger.credit(newer))[1])


async def test_who_pays_as_he_goes_uses_credit_first_and_then_the_budget_alone(
    ledger: Ledger,
) -> None:
    org_id, _, key_id = await ledger.new_path()
    await ledger.budget("org", org_id, 100)
    grant = await ledger.grant("org", org_id, 30)
    id_ = ledger.id()

    assert told(await ledger.one(reserve(id_, key_id, 50))) == "ok"
    assert await ledger.credit(grant) == (0, 30, 0, 0)
    assert await ledger.balances("org", org_id) == (0, 50, 0)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 51))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(settle(id_, 40))) == "ok"
    assert await ledger.credit(grant) == (30, 0, 0, 0)
    assert await ledger.balances("org", org_id) == (40, 0, 0)


async def test_who_prepays_is_refused_what_his_credit_does_not_cover(ledger: Ledger) -> None:
    org_id, _, key_id = await paying_path(ledger, prepaid=True)
    await ledger.grant("org", org_id, 30)
    await ledger.grant("key", key_id, 20)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 45))) == "ok"

    refused = await ledger.one(reserve(ledger.id(), key_id, 6))

    assert isinstance(refused, CreditRefused)
    assert ("org", org_id, 5, 6) == (
        refused.facts.account_kind,
        refused.facts.account_id,
        refused.facts.available,
        refused.facts.requested,
    )
    assert told(await ledger.one(reserve(ledger.id(), key_id, 5))) == "ok"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 0))) == "ok"


async def test_a_prepaid_team_is_enough_for_its_keys(ledger: Ledger) -> None:
    _, team_id, key_id = await paying_path(ledger)
    await ledger.accounts.update_account(BY_TEST, "team", team_id, prepaid=True)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "CREDIT_EXHAUSTED"


async def test_credit_is_no_budget(ledger: Ledger) -> None:
    org_id, _, key_id = await ledger.new_path()
    await ledger.grant("org", org_id, 100)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_MISSING"


async def test_a_grant_is_used_neither_before_its_start_nor_from_its_end_on(
    ledger: Ledger,
) -> None:
    org_id, _, key_id = await paying_path(ledger, prepaid=True)
    await ledger.grant("org", org_id, 100, starts_in=DAY, ends_in=2 * DAY)
    told_ = []
    for moment in (DAY - timedelta(seconds=1), DAY, 2 * DAY - timedelta(seconds=1), 2 * DAY):
        await ledger.set_clock(ledger.now.replace(day=24, hour=12, minute=0, second=0) + moment)
        told_.append(told(await ledger.one(reserve(ledger.id(), key_id, 1))))

    assert told_ == ["CREDIT_EXHAUSTED", "ok", "ok", "CREDIT_EXHAUSTED"]


@pytest.mark.parametrize("who", ["org", "team"])
async def test_a_free_tier_grant_refuses_commercial_accounts(ledger: Ledger, who: str) -> None:
    org_id, team_id, key_id = await paying_path(ledger, prepaid=True)
    free = await ledger.grant("org", org_id, 100, commercial_use=False)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"

    account_id = org_id if who == "org" else team_id
    await ledger.accounts.update_account(BY_TEST, who, account_id, commercial=True)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "CREDIT_EXHAUSTED"
    await ledger.grant("org", org_id, 100, commercial_use=True)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"
    assert (await ledger.credit(free))[1] == 1


async def test_a_grant_for_small_models_pays_for_no_others(ledger: Ledger) -> None:
    """18 USD, three months, small models only."""
    org_id, _, key_id = await paying_path(ledger, prepaid=True)
    scope = Scope(providers=("open*",), models=("*-mini", "gpt-4.1-nano"), tags={"team": "a"})
    await ledger.grant("org", org_id, 18, scope=scope, ends_in=90 * DAY)
    tags = {"team": "a", "other": "b"}

    asked = [
        reserve(ledger.id(), key_id, 1, tags=tags),
        reserve(ledger.id(), key_id, 1, tags=tags, model="gpt-4.1-nano"),
        reserve(ledger.id(), key_id, 1, tags=tags, model="gpt-4o"),
        reserve(ledger.id(), key_id, 1, tags=tags, provider="azure"),
        reserve(ledger.id(), key_id, 1, tags={"team": "b"}),
        reserve(ledger.id(), key_id, 1),
    ]

    assert [told(o) for o in await ledger.apply(*asked)] == ["ok"] * 2 + ["CREDIT_EXHAUSTED"] * 4


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "late"])
async def test_overage_goes_to_the_last_slice_where_credit_was_the_whole_hold(
    ledger: Ledger, late: bool
) -> None:
    _, _, key_id = await paying_path(ledger)
    first = await ledger.grant("key", key_id, 10, ends_in=DAY)
    second = await ledger.grant("key", key_id, 50, ends_in=2 * DAY)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 40))
    if late:
        await ledger.advance(timedelta(minutes=2))

    await ledger.apply(settle(id_, 100))

    assert await ledger.credit(first) == (10, 0, 0, 0)
    assert await ledger.credit(second) == (90, 0, 0, 0)
    later = ledger.id()
    await ledger.apply(reserve(later, key_id, 5))
    assert await ledger.credit(second) == (90, 0, 0, 0)


async def test_overage_beyond_a_partial_cover_is_the_budgets_alone(ledger: Ledger) -> None:
    org_id, _, key_id = await paying_path(ledger)
    grant = await ledger.grant("key", key_id, 30)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 40))

    await ledger.apply(settle(id_, 100))

    assert await ledger.credit(grant) == (30, 0, 0, 0)
    assert await ledger.balances("org", org_id) == (100, 0, 0)


@pytest.mark.parametrize(("pool", "suspense"), [("paid", 20), ("local", 0)])
async def test_a_late_settle_and_void_return_to_the_very_slices(
    ledger: Ledger, pool: str, suspense: int
) -> None:
    _, _, key_id = await paying_path(ledger)
    first = await ledger.grant("key", key_id, 30, ends_in=DAY)
    second = await ledger.grant("key", key_id, 30, ends_in=2 * DAY)
    ids = [ledger.id(), ledger.id()]
    await ledger.apply(
        reserve(ids[0], key_id, 20, pool=pool), reserve(ids[1], key_id, 20, pool=pool)
    )
    await ledger.advance(timedelta(minutes=2))
    await ledger.store.sweep()
    assert (await ledger.credit(first))[:3] == (0, 0, suspense + suspense // 2)

    await ledger.apply(settle(ids[1], 15))
    assert (await ledger.credit(first)) == (10, 0, suspense, 0)
    assert (await ledger.credit(second)) == (5, 0, 0, 0)
    await ledger.apply(void(ids[0]))
    assert (await ledger.credit(first)) == (10, 0, 0, 0)


async def test_suspended_credit_is_not_given_twice(ledger: Ledger) -> None:
    org_id, _, key_id = await paying_path(ledger, prepaid=True)
    await ledger.grant("org", org_id, 30)
    await ledger.apply(reserve(ledger.id(), key_id, 20))
    await ledger.advance(timedelta(minutes=2))

    assert told(await ledger.one(reserve(ledger.id(), key_id, 11))) == "CREDIT_EXHAUSTED"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 10))) == "ok"


async def test_suspended_credit_of_who_pays_as_he_goes_is_not_drawn_again(ledger: Ledger) -> None:
    _, _, key_id = await paying_path(ledger)
    grant = await ledger.grant("key", key_id, 30)
    await ledger.apply(reserve(ledger.id(), key_id, 20))
    await ledger.advance(timedelta(minutes=2))

    await ledger.apply(reserve(ledger.id(), key_id, 20))

    assert await ledger.credit(grant) == (0, 10, 20, 0)


async def test_what_an_ended_grant_has_left_lapses_by_an_entry_and_what_is_held_does_not(
    ledger: Ledger,
) -> None:
    _, _, key_id = await paying_path(ledger)
    grant = await ledger.grant("key", key_id, 100, ends_in=DAY)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 40, ttl_ms=86_400_000))
    await ledger.apply(extend(id_, 40, ttl_ms=86_400_000))
    await ledger.advance(DAY - timedelta(hours=1))
    await ledger.apply(extend(id_, 40, ttl_ms=86_400_000))
    await ledger.store.sweep()
    assert await ledger.credit(grant) == (0, 40, 0, 0)
    await ledger.advance(timedelta(hours=1))

    await ledger.store.sweep()
    assert await ledger.credit(grant) == (0, 40, 0, 60)
    await ledger.apply(settle(id_, 25))
    assert await ledger.credit(grant) == (25, 0, 0, 60)
    await ledger.store.sweep()
    await ledger.store.sweep()

    assert await ledger.credit(grant) == (25, 0, 0, 75)
    entries = await ledger.entries_of("lapse", key_id)
    assert [[15], [60]] == [entry["slice_lapsed"] for entry in entries]


async def test_an_extension_does_not_draw_on_what_has_ended_meanwhile(ledger: Ledger) -> None:
    _, _, key_id = await paying_path(ledger)
    ended = await ledger.grant("key", key_id, 100, ends_in=timedelta(seconds=30))
    usable = await ledger.grant("key", key_id, 100)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 40))
    await ledger.advance(timedelta(seconds=30))

    await ledger.apply(extend(id_, 50))

    assert await ledger.credit(ended) == (0, 40, 0, 0)
    assert await ledger.credit(usable) == (0, 10, 0, 0)


async def test_a_hold_is_settled_from_a_grant_that_has_ended_since(ledger: Ledger) -> None:
    _, _, key_id = await paying_path(ledger)
    grant = await ledger.grant("key", key_id, 100, ends_in=timedelta(seconds=30))
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 40))
    await ledger.advance(timedelta(seconds=31))
    await ledger.store.sweep()

    assert told(await ledger.one(settle(id_, 60))) == "ok"

    assert await ledger.credit(grant) == (60, 0, 0, 60)


async def test_two_of_one_batch_share_a_grant(ledger: Ledger) -> None:
    org_id, _, key_id = await paying_path(ledger, prepaid=True)
    grant = await ledger.grant("org", org_id, 100)

    answers = await ledger.apply(*(reserve(ledger.id(), key_id, 40) for _ in range(3)))

    assert [told(a) for a in answers] == ["ok", "ok", "CREDIT_EXHAUSTED"]
    assert await ledger.credit(grant) == (0, 80, 0, 0)


async def test_a_refused_reserve_takes_no_slice(ledger: Ledger) -> None:
    org_id, _, key_id = await ledger.new_path()
    await ledger.budget("org", org_id, 10)
    grant = await ledger.grant("org", org_id, 100)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 11))) == "BUDGET_EXCEEDED"

    assert await ledger.credit(grant) == (0, 0, 0, 0)
