import asyncio
from contextlib import aclosing

import pytest

from penstock.core import semconv
from penstock.core.catalogue import TelemetrySettings
from penstock.core.errors import (
    BudgetExceeded,
    CapacityExhausted,
    InvalidRequest,
    StreamBroken,
    Unavailable,
    UpstreamFailed,
)
from penstock.router.backends.base import (
    AttemptFailed,
    Billing,
    Chunk,
    PoolView,
)
from penstock.router.events import Delta, Done, Started
from penstock.router.v1.router_pb2 import CACHE_VERDICT_HIT, CACHE_VERDICT_UNAVAILABLE, CacheControl
from penstock.type.v1.chat_pb2 import ChoiceDelta
from support.chat import catalogue
from support.flow_house import House, request
from support.ports import (
    text_answer,
)
from support.telemetry import recorded
from support.wait import until

FULL = AttemptFailed(CapacityExhausted("full"), billing=Billing.NOTHING, fall_back=True)
DIED = AttemptFailed(UpstreamFailed("died"), billing=Billing.UNKNOWN, fall_back=True)
BROKE = AttemptFailed(StreamBroken("broke"), billing=Billing.UNKNOWN, fall_back=True)
BAD = AttemptFailed(InvalidRequest("bad"), billing=Billing.NOTHING, fall_back=False)


async def test_an_answer_is_started_delivered_and_billed():
    house = House()
    events = await house.run(request())
    assert [Started, Delta, Delta, Done] == [type(e) for e in events]
    receipt = events[-1].receipt
    assert 10 * 1_000 + 3 * 2_000 == receipt.cost_nano_usd == house.ledger.posted_nano_usd
    assert 10 * 10_000 + 3 * 40_000 == receipt.baseline_cost_nano_usd
    assert receipt.baseline_cost_nano_usd - receipt.cost_nano_usd == receipt.saved_nano_usd
    assert ("local", "small", "local_first") == (receipt.provider, receipt.model, receipt.reason)
    assert {} == house.ledger.held


async def test_the_second_identical_request_is_a_hit_at_cost_nothing():
    house = House()
    await house.run(request())
    events = await house.run(request())
    receipt = events[-1].receipt
    assert (0, CACHE_VERDICT_HIT, "cache") == (
        receipt.cost_nano_usd,
        receipt.cache,
        receipt.provider,
    )
    assert 10 * 10_000 + 3 * 40_000 == receipt.saved_nano_usd
    assert 1 == len(house.local.calls)


@pytest.mark.parametrize("record_prompts", [False, True])
async def test_prompts_and_answers_are_recorded_exactly_where_the_catalogue_says_so(
    record_prompts: bool,
):
    settings = TelemetrySettings(record_prompts=record_prompts)
    house = House()
    house.flow._catalogue = lambda: catalogue().model_copy(update={"telemetry": settings})
    with recorded() as it:
        house.flow._new_trace = it.telemetry.request
        await house.run(request())
        await house.run(request())  # a hit's answer too
        requests = [span.attributes for span in it.spans() if span.parent is None]

    for name in (semconv.INPUT_MESSAGES, semconv.OUTPUT_MESSAGES):
        assert [record_prompts] * 2 == [name in attributes for attributes in requests]


async def test_a_spent_budget_is_still_answered_from_the_cache():
    house = House()
    await house.run(request())
    house.ledger.limit_nano_usd = 0
    assert CACHE_VERDICT_HIT == (await house.run(request()))[-1].receipt.cache
    with pytest.raises(BudgetExceeded):
        await house.run(request(text="another"))
    assert {} == house.ledger.held


async def test_a_cache_that_is_away_is_a_miss():
    house = House()
    house.answers.down = True
    assert CACHE_VERDICT_UNAVAILABLE == (await house.run(request()))[-1].receipt.cache


async def test_a_pool_that_turns_out_full_spills_and_costs_nothing_itself():
    house = House(local=[FULL])
    receipt = (await house.run(request()))[-1].receipt
    assert ("acme", "spill_full") == (receipt.provider, receipt.reason)
    assert ["CAPACITY_EXHAUSTED", "ok"] == [a.outcome for a in receipt.attempts]
    assert 10 * 10_000 + 3 * 40_000 == receipt.cost_nano_usd == house.ledger.posted_nano_usd
    assert 1 == len(house.ledger.voided)


async def test_each_attempt_is_billed_for_itself():
    house = House(paid=[DIED])
    house.views.pools["small"] = PoolView()
    receipt = (await house.run(request()))[-1].receipt
    assert "local" == receipt.provider
    first, second = receipt.attempts
    assert (64 + 8 + 5) * 10_000 == first.cost_nano_usd  # the whole input: it may have been billed
    assert house.ledger.posted_nano_usd == first.cost_nano_usd + second.cost_nano_usd


async def test_nothing_is_retried_once_the_client_has_seen_a_byte():
    house = House(local=[Chunk([ChoiceDelta(content="par")], None, 10, 1), BROKE])
    with pytest.raises(StreamBroken) as caught:
        await house.run(request())
    assert [] == house.paid.calls
    assert str(house.ledger.posted_nano_usd) == caught.value.metadata["cost_nano_usd"]
    assert {} == house.ledger.held
    assert {} == house.answers.entries


async def test_who_does_not_stream_has_seen_nothing_and_is_answered_by_the_next():
    house = House(local=[Chunk([ChoiceDelta(content="par")], None, 10, 1), BROKE])
    events = await house.run(request(stream=False))
    receipt = events[-1].receipt
    assert ["local", "acme"] == [a.provider for a in receipt.attempts]
    assert [10 * 1_000 + 2_000, 10 * 10_000 + 3 * 40_000] == [
        a.cost_nano_usd for a in receipt.attempts
    ]
    assert receipt.cost_nano_usd == house.ledger.posted_nano_usd
    assert "hi there" == "".join(d.content for e in events[1:-1] for d in e.deltas)


async def test_a_request_at_fault_does_not_fall_back():
    house = House(local=[BAD])
    with pytest.raises(InvalidRequest):
        await house.run(request())
    assert [] == house.paid.calls
    assert {} == house.ledger.held


async def test_a_hang_up_stops_the_upstream_and_bills_what_was_made():
    house = House(local=[Chunk([ChoiceDelta(content="par")], None, 10, 2), None])
    async with aclosing(house.flow.run(request())) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    assert 1 == house.local.closed_early
    assert 10 * 1_000 + 2 * 2_000 == house.ledger.posted_nano_usd
    assert {} == house.ledger.held


async def test_a_cancelled_task_settles_all_the_same():
    house = House(paid=[Chunk([ChoiceDelta(content="par")]), None])
    seen = asyncio.Event()

    async def consume() -> None:
        async for event in house.flow.run(request("acme/large")):
            if isinstance(event, Delta):
                seen.set()

    task = asyncio.create_task(consume())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await house.flow.drain()
    assert {} == house.ledger.held
    assert house.ledger.settled[0].usage.estimated
    assert (64 + 8 + 5) * 10_000 + 3 * 40_000 == house.ledger.posted_nano_usd


async def test_what_is_posted_is_counted_also_where_a_hang_up_meets_the_settlement():
    house = House()
    settling, gate = asyncio.Event(), asyncio.Event()
    settle = house.ledger.settle

    async def slow(the_request, traceparent=""):
        settling.set()
        await gate.wait()
        return await settle(the_request, traceparent)

    house.ledger.settle = slow
    running = asyncio.create_task(house.run(request()))
    await settling.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    gate.set()
    await house.flow.drain()
    assert 10 * 1_000 + 3 * 2_000 == house.ledger.posted_nano_usd
    counted = house.metrics.registry.get_sample_value(
        "penstock_cost_nano_usd_total", {"provider": "local", "model": "small"}
    )
    assert house.ledger.posted_nano_usd == counted


@pytest.mark.parametrize(("sends", "cost_nano_usd"), [(True, (64 + 8 + 5) * 10_000), (False, 0)])
async def test_a_hang_up_costs_nothing_while_the_request_has_not_left(sends, cost_nano_usd):
    house = House(paid=[None])
    house.paid.sends = sends
    running = asyncio.create_task(house.run(request("acme/large")))
    await until(lambda: house.paid.calls)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await house.flow.drain()
    assert {} == house.ledger.held
    assert cost_nano_usd == house.ledger.posted_nano_usd
    assert (0 if sends else 1) == len(house.ledger.voided)


async def test_what_a_hang_up_cost_is_left_with_the_request():
    house = House(local=[Chunk([ChoiceDelta(content="par")], None, 10, 2), None])
    asked = request()
    async with aclosing(house.flow.run(asked)) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    assert str(house.ledger.posted_nano_usd) == asked.facts["cost_nano_usd"]


async def test_a_dearer_target_is_not_tried_where_a_cheaper_one_was_refused():
    house = House(limit_nano_usd=1)
    with pytest.raises(BudgetExceeded):
        await house.run(request())
    assert [] == house.local.calls + house.paid.calls


async def test_a_ledger_that_is_away_refuses():
    house = House()
    house.ledger.down = Unavailable("away", reason="LEDGER_UNAVAILABLE")
    with pytest.raises(Unavailable):
        await house.run(request())
    assert [] == house.local.calls


async def test_fail_open_is_for_local_attempts_only():
    house = House()
    house.ledger.down = Unavailable("away", reason="LEDGER_UNAVAILABLE")
    receipt = (await house.run(request(fail_open=True)))[-1].receipt
    assert ("local", False) == (receipt.provider, receipt.settled)
    with pytest.raises(Unavailable):
        await house.run(request("acme/large", fail_open=True, text="other"))


async def test_a_flight_that_is_led_is_abandoned_on_failure():
    house = House(local=[BAD])
    with pytest.raises(InvalidRequest):
        await house.run(request(temperature=0))
    assert ["flight-1"] == [a.flight_token for a in house.answers.abandoned]


async def test_a_flight_that_is_led_is_resolved_by_the_answer():
    house = House()
    await house.run(request(temperature=0))
    assert [] == house.answers.abandoned
    assert ["flight-1"] == [s.flight_token for s in house.answers.entries.values()]


async def test_an_incomplete_answer_is_not_kept():
    house = House(local=text_answer()[:1] + text_answer()[2:])
    await house.run(request())
    assert {} == house.answers.entries


async def test_no_store_keeps_nothing():
    house = House()
    asked = request()
    asked.cache_control.no_store = True
    await house.run(asked)
    assert {} == house.answers.entries


async def test_max_tokens_are_always_sent():
    house = House()
    await house.run(request())
    assert [100] == [c.input.max_tokens for c in house.local.calls]


def test_cache_control_is_the_requests_own():
    assert request().cache_control is not request().cache_control
    assert CacheControl() == request().cache_control
