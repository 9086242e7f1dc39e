"""What a prepaid account used beyond its hold is posted, and blocks its credit (LEDGER, I6)."""

from datetime import timedelta

import pytest

from penstock.quota.ledger import Answer
from penstock.quota.refusals import CreditRefused
from support.ledger import Ledger, extend, reserve, settle, told, void

DAY = timedelta(days=1)


async def prepaid_key(ledger: Ledger) -> int:
    """Its organisation is prepaid, its budget unlimited: credit alone is asked."""
    org_id, _, key_id = await ledger.new_path(prepaid=True)
    await ledger.budget("org", org_id, None)
    return key_id


async def refused(ledger: Ledger, key_id: int, amount: int = 1) -> CreditRefused:
    outcome = await ledger.one(reserve(ledger.id(), key_id, amount))
    assert isinstance(outcome, CreditRefused), outcome
    return outcome


@pytest.mark.parametrize("used", [30, 31, 500])
async def test_a_grant_that_was_used_beyond_its_end_admits_nothing_more(
    ledger: Ledger, used: int
) -> None:
    key_id = await prepaid_key(ledger)
    grant = await ledger.grant("key", key_id, 30)
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(reserve(id_, key_id, 20)))

    answer = await ledger.one(settle(id_, used))

    assert isinstance(answer, Answer)
    assert (used, True) == (answer.posted_nano_usd, answer.overage)
    assert (used, 0, 0, 0) == await ledger.credit(grant)
    # Nothing is left, and never less than nothing is told.
    assert 0 == (await refused(ledger, key_id)).facts.available


async def test_a_hold_beside_it_may_end_and_not_grow_and_gives_nothing_back(
    ledger: Ledger,
) -> None:
    key_id = await prepaid_key(ledger)
    grant = await ledger.grant("key", key_id, 100)
    over, beside = ledger.id(), ledger.id()
    await ledger.apply(reserve(over, key_id, 40), reserve(beside, key_id, 40))

    await ledger.apply(settle(over, 100))

    assert (100, 40, 0, 0) == await ledger.credit(grant)
    assert "CREDIT_EXHAUSTED" == told(await ledger.one(extend(beside, 41)))
    await refused(ledger, key_id)
    # What comes back pays what was used beyond: it is no credit.
    assert "ok" == told(await ledger.one(void(beside)))
    assert (100, 0, 0, 0) == await ledger.credit(grant)
    await refused(ledger, key_id)


async def test_it_blocks_its_own_grant_and_the_next_one_pays_no_more_than_it_has(
    ledger: Ledger,
) -> None:
    key_id = await prepaid_key(ledger)
    first = await ledger.grant("key", key_id, 10, ends_in=DAY)
    second = await ledger.grant("key", key_id, 50, ends_in=2 * DAY)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 10))

    await ledger.apply(settle(id_, 25))

    assert (25, 0, 0, 0) == await ledger.credit(first)
    assert 50 == (await refused(ledger, key_id, 51)).facts.available
    assert "ok" == told(await ledger.one(reserve(ledger.id(), key_id, 50)))
    assert (0, 50, 0, 0) == await ledger.credit(second)
    await refused(ledger, key_id)


async def test_a_late_settle_of_credit_that_others_hold_by_now_blocks_it_too(
    ledger: Ledger,
) -> None:
    key_id = await prepaid_key(ledger)
    grant = await ledger.grant("key", key_id, 40)
    abandoned, next_ = ledger.id(), ledger.id()
    await ledger.apply(reserve(abandoned, key_id, 40, pool="local"))
    await ledger.advance(timedelta(minutes=2))
    # An abandoned local hold is released: its credit is free.
    assert "ok" == told(await ledger.one(reserve(next_, key_id, 40)))

    late = await ledger.one(settle(abandoned, 35))

    assert isinstance(late, Answer)
    assert (35, True) == (late.posted_nano_usd, late.late)
    assert (35, 40, 0, 0) == await ledger.credit(grant)
    assert "ok" == told(await ledger.one(settle(next_, 40)))
    assert (75, 0, 0, 0) == await ledger.credit(grant)
    await refused(ledger, key_id)


async def test_what_was_used_beyond_an_extended_hold_is_its_last_grants(ledger: Ledger) -> None:
    key_id = await prepaid_key(ledger)
    first = await ledger.grant("key", key_id, 10, ends_in=DAY)
    second = await ledger.grant("key", key_id, 30, ends_in=2 * DAY)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 10))
    assert "ok" == told(await ledger.one(extend(id_, 30)))

    await ledger.apply(settle(id_, 55))

    assert (10, 0, 0, 0) == await ledger.credit(first)
    assert (45, 0, 0, 0) == await ledger.credit(second)
    await refused(ledger, key_id)
