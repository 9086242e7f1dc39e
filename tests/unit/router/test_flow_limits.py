"""The flow at rate limits and prepaid credit; hits of the cache that count."""

import asyncio

import pytest

from penstock.core.errors import BudgetExceeded, CreditExhausted, RateLimited, Unavailable
from penstock.quota.v1.quota_pb2 import POOL_KIND_CACHE
from penstock.router.v1.router_pb2 import CACHE_VERDICT_HIT
from support.flow_house import House, request
from support.ports import limited
from support.wait import until


def credit(kind: str) -> CreditExhausted:
    return CreditExhausted("no credit", metadata={"account_kind": kind})


async def test_a_pools_limit_is_waited_for_and_the_new_reserve_has_a_new_id():
    house = House()
    house.ledger.refusals = [limited(after_seconds=0.05)]
    receipt = (await house.run(request("acme/large")))[-1].receipt
    first, second = house.ledger.reserves
    assert first.reservation_id != second.reservation_id == receipt.reservation_id
    assert (1, 1) == (first.attempt, second.attempt)
    assert ["ok"] == [a.outcome for a in receipt.attempts]


async def test_a_pools_limit_that_frees_too_late_leaves_it_to_the_next_target():
    house = House()
    house.ledger.refusals = [limited(after_seconds=600)]
    receipt = (await house.run(request()))[-1].receipt
    assert [("local", "RATE_LIMITED"), ("acme", "ok")] == [
        (a.provider, a.outcome) for a in receipt.attempts
    ]


async def test_where_no_target_is_left_the_client_is_told_when_it_frees_up():
    house = House()
    house.ledger.refusals = [limited(after_seconds=600)]
    with pytest.raises(RateLimited) as refused:
        await house.run(request("acme/large"))
    assert refused.value.retry_after_seconds == pytest.approx(600, abs=1)
    assert "acme/large: pinned: RATE_LIMITED" == refused.value.metadata["attempts"]
    assert [] == house.paid.calls


async def test_the_callers_own_limit_is_told_at_once_and_no_other_target_is_tried():
    house = House()
    house.views.pools.clear()  # so that the dearer one comes first, and a cheaper one is left
    house.ledger.refusals = [limited("key", after_seconds=0.01)]
    with pytest.raises(RateLimited) as refused:
        await house.run(request())
    assert 0.01 == refused.value.retry_after_seconds
    assert 1 == len(house.ledger.reserves)
    assert [] == house.local.calls + house.paid.calls


async def test_a_providers_spent_credit_leaves_it_to_a_dearer_provider():
    house = House()
    house.ledger.refusals = [credit("pool")]
    assert "acme" == (await house.run(request()))[-1].receipt.provider


async def test_the_callers_spent_credit_does_not():
    house = House()
    house.ledger.refusals = [credit("key")]
    with pytest.raises(CreditExhausted):
        await house.run(request())
    assert 1 == len(house.ledger.reserves)


async def test_the_end_of_an_attempt_wakes_one_that_waits_for_a_call_in_flight():
    house = House(paid=[None])
    running = asyncio.create_task(house.run(request("acme/large")))
    await until(lambda: house.paid.calls)
    house.ledger.refusals = [limited(unit="in_flight", after_seconds=3600)]
    waits = asyncio.create_task(house.run(request("acme/large", text="another")))
    await until(lambda: house.waiting.count == 1)
    house.paid.script = []
    running.cancel()
    receipt = (await asyncio.wait_for(waits, 2))[-1].receipt
    assert ["ok"] == [a.outcome for a in receipt.attempts]
    await asyncio.gather(running, return_exceptions=True)
    await house.flow.drain()
    assert {} == house.ledger.held


async def test_a_client_that_hangs_up_leaves_the_queue_and_holds_nothing():
    house = House()
    house.ledger.refusals = [limited(after_seconds=30)]
    waits = asyncio.create_task(house.run(request("acme/large")))
    await until(lambda: house.waiting.count == 1)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert (0, {}, []) == (house.waiting.count, house.ledger.held, house.paid.calls)


async def test_a_hit_is_counted_where_requests_are_limited():
    house = House()
    await house.run(request())
    receipt = (await house.run(request(counts_requests=True)))[-1].receipt
    assert (CACHE_VERDICT_HIT, 0) == (receipt.cache, receipt.cost_nano_usd)
    (counted,) = house.ledger.counted
    assert (POOL_KIND_CACHE, "cache", "small", 0, 0, "k", "req_1") == (
        counted.pool, counted.provider, counted.model, counted.amount_nano_usd, counted.tokens,
        counted.key_id, counted.request_id,
    )  # fmt: skip
    assert {} == house.ledger.held


async def test_a_hit_is_not_told_to_the_ledger_where_requests_are_not_limited():
    house = House()
    await house.run(request())
    await house.run(request())
    assert (1, []) == (len(house.ledger.reserves), house.ledger.counted)


async def test_a_full_limit_in_requests_refuses_a_hit_too():
    house = House()
    await house.run(request())
    house.ledger.refusals = [limited("key", after_seconds=7)]
    with pytest.raises(RateLimited) as refused:
        await house.run(request(counts_requests=True))
    assert 7 == refused.value.retry_after_seconds


@pytest.mark.parametrize("fail_open", [False, True])
async def test_a_hit_that_cannot_be_counted_is_refused_unless_the_key_fails_open(fail_open: bool):
    house = House()
    await house.run(request())
    house.ledger.down = Unavailable("away", reason="LEDGER_UNAVAILABLE")
    asked = request(counts_requests=True, fail_open=fail_open)
    if fail_open:
        assert CACHE_VERDICT_HIT == (await house.run(asked))[-1].receipt.cache
        assert 1 == house.metrics.registry.get_sample_value("penstock_fail_open_total")
    else:
        with pytest.raises(Unavailable):
            await house.run(asked)


async def test_a_pools_spent_budget_says_nothing_of_the_callers_money():
    house = House()
    house.ledger.refusals = [BudgetExceeded("spent", metadata={"account_kind": "pool"})]
    assert "acme" == (await house.run(request()))[-1].receipt.provider
