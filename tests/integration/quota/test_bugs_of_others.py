"""Bugs that other gateways had (LEDGER, "The bugs of others"), each one a test here, in that order.

Over real processes: a counter in every replica (test_concurrency, and `make prove`), and a database
that was down at start (test_outage, test_keys_with_quota).
"""

import asyncio
from datetime import timedelta

import pytest
from pydantic import ValidationError

from penstock.core.catalogue import PaidModel
from penstock.core.money import Price, format_usd, parse_usd
from penstock.quota.store.database import Database
from penstock.quota.store.ledger_store import LedgerStore, Timed
from penstock.router.backends.base import Chunk
from penstock.router.estimate import Meter
from penstock.type.v1.chat_pb2 import ChoiceDelta
from support.ledger import Ledger, reserve, settle, told, void

PRICE = Price(10 * 10**6, 5 * 10**6, 40 * 10**6)
"""10, 5 and 40 nano-USD a token."""


async def test_concurrent_requests_do_not_pass_a_check_before_they_are_counted(
    ledger: Ledger,
) -> None:
    key_id = await ledger.new_key(100)

    outcomes = await asyncio.gather(
        *(ledger.one(reserve(ledger.id(), key_id, 30)) for _ in range(20))
    )

    assert [told(o) for o in outcomes].count("ok") == 3
    assert await ledger.balances("key", key_id) == (0, 90, 0)


async def test_a_second_replica_has_no_counter_of_its_own(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    other = await Database.open(ledger.dsn)
    await ledger.apply(reserve(ledger.id(), key_id, 60))

    (refused,) = await LedgerStore(other).apply([Timed(reserve(ledger.id(), key_id, 60))])
    await other.close()

    assert told(refused) == "BUDGET_EXCEEDED"


async def test_no_job_erases_what_was_spent_as_a_window_opens(ledger: Ledger) -> None:
    """Each replica's reset job ran a little later than the last, and took new spend with it."""
    key_id = await ledger.new_key(100, "month")
    await ledger.advance(timedelta(days=20))
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 90))
    await ledger.apply(settle(id_, 90))

    for _ in range(4):
        await ledger.store.sweep()

    assert await ledger.balances("key", key_id, "month") == (90, 0, 0)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 11))) == "BUDGET_EXCEEDED"


def test_a_model_whose_price_is_unknown_cannot_be_configured() -> None:
    with pytest.raises(ValidationError, match=r"1 validation error[^.]*\nprice\n *Field required"):
        PaidModel.model_validate({"context_tokens": 1000, "max_output_tokens": 100})


async def test_a_budget_of_zero_is_no_budget_to_spend_without_end(ledger: Ledger) -> None:
    key_id = await ledger.new_key(0)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_EXCEEDED"


async def test_a_cancelled_stream_is_neither_refunded_nor_billed_as_one_delta(
    ledger: Ledger,
) -> None:
    """The whole input, and the bound of what was delivered: 806 deltas are 806 tokens."""
    meter = Meter(PRICE, prompt_tokens_bound=100, completion_tokens_bound=1000,
                  counted=False)  # fmt: skip
    for _ in range(806):
        meter.add(Chunk([ChoiceDelta(content="x")]))
    used = meter.used()
    key_id = await ledger.new_key(10**9)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 10**6))

    assert told(await ledger.one(settle(id_, used.amount_nano_usd, estimated=True))) == "ok"

    assert 100 * 10 + 806 * 40 == used.amount_nano_usd
    assert used.usage.estimated
    assert await ledger.balances("key", key_id) == (used.amount_nano_usd, 0, 0)


async def test_a_broken_stream_is_not_billed_in_full(ledger: Ledger) -> None:
    meter = Meter(PRICE, prompt_tokens_bound=100, completion_tokens_bound=1000,
                  counted=False)  # fmt: skip
    meter.add(Chunk([ChoiceDelta(content="hello")]))
    used = meter.used()
    key_id = await ledger.new_key(10**9)
    id_, held = ledger.id(), 100 * 10 + 1000 * 40
    await ledger.apply(reserve(id_, key_id, held))
    await ledger.apply(settle(id_, used.amount_nano_usd, estimated=True, outcome="BROKEN"))

    assert await ledger.balances("key", key_id) == (100 * 10 + 5 * 40, 0, 0)


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
