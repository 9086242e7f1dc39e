"""Bugs that other gateways had (LEDGER, "The bugs of others"), each one a test here.

Elsewhere: check-then-increment and a counter in every replica (test_concurrency), reset jobs
(test_windows), a database that was down at start (test_outage).
"""

from datetime import timedelta

import pytest

from penstock.core.money import format_usd, parse_usd
from support.ledger import Ledger, reserve, settle, told, void


async def test_a_reservation_is_never_shrunk_to_what_is_left(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    await ledger.apply(reserve(ledger.id(), key_id, 90))

    assert told(await ledger.one(reserve(ledger.id(), key_id, 11))) == "BUDGET_EXCEEDED"

    assert await ledger.balances("key", key_id) == (0, 90, 0)


@pytest.mark.parametrize("pool", ["local", "paid"])
async def test_a_request_that_dies_does_not_leave_its_key_over_budget_for_ever(
    ledger: Ledger, pool: str
) -> None:
    key_id = await ledger.new_key(100)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 100, pool=pool))

    await ledger.advance(timedelta(days=30))
    if pool == "paid":
        # It may have been billed: an operator says that it was not.
        await ledger.apply(settle(id_, 0, outcome="OPERATOR"))

    assert told(await ledger.one(reserve(ledger.id(), key_id, 100))) == "ok"


async def test_a_retried_settle_does_not_inflate_what_was_spent(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 10))

    for _ in range(3):
        assert told(await ledger.one(settle(id_, 7))) == "ok"

    assert await ledger.balances("key", key_id) == (7, 0, 0)


async def test_sums_are_exact_to_the_nano(ledger: Ledger) -> None:
    limit = parse_usd("25")
    key_id = await ledger.new_key(limit)
    # A tenth and two tenths are no finite binary fractions; 25.000000000000004 comes of such sums.
    costs = [
        parse_usd("0.1"),
        parse_usd("0.2"),
        parse_usd("24.699999999"),
        parse_usd("0.000000001"),
    ]
    for cost in costs:
        id_ = ledger.id()
        await ledger.apply(reserve(id_, key_id, cost), settle(id_, cost))

    posted, _, _ = await ledger.balances("key", key_id)
    assert "25.00" == format_usd(posted)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 0))) == "ok"


async def test_local_models_pass_the_same_budgets(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 40, pool="local"))
    assert await ledger.balances("key", key_id) == (0, 40, 0)
    await ledger.apply(settle(id_, 101))

    free = reserve(ledger.id(), key_id, 0, pool="local", provider="local")

    assert told(await ledger.one(free)) == "BUDGET_EXCEEDED"


async def test_a_fall_backs_first_attempt_is_billed_too(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    first, second = ledger.id(), ledger.id()
    await ledger.apply(
        reserve(first, key_id, 30, request_id="req_f", attempt=1, provider="openai"),
        settle(first, 12, outcome="UPSTREAM_FAILED", estimated=True),
        reserve(second, key_id, 30, request_id="req_f", attempt=2, provider="azure"),
        settle(second, 20),
    )

    rows = await ledger.fetch(
        "SELECT r.attempt, e.posted FROM entries e JOIN reservations r ON r.id = e.reservation_id"
        " WHERE r.key_id = $1 AND e.operation = 'settle' ORDER BY e.id",
        key_id,
    )
    assert [(1, 12), (2, 20)] == [tuple(row) for row in rows]
    assert await ledger.balances("key", key_id) == (32, 0, 0)


async def test_entries_cannot_be_changed(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 10), void(id_))
    for change in ("UPDATE entries SET posted = 0", "DELETE FROM entries", "TRUNCATE entries"):
        with pytest.raises(Exception, match="append-only"):
            await ledger.execute(change)
