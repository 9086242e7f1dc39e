"""The plan, with what the ledger says to each attempt."""

import asyncio
from dataclasses import replace

import pytest

from penstock.core.catalogue import CacheSettings
from penstock.core.deadline import Deadline
from penstock.core.errors import CapacityExhausted, Unauthenticated, Unavailable
from penstock.quota.v1.quota_pb2 import ReserveRequest, ReserveResponse
from penstock.router.backends.base import AttemptFailed, Billing, ProviderView
from penstock.router.v1.router_pb2 import CacheControl, ExplainRouteResponse
from support.flow_house import House, request
from support.ports import MemoryLedger, limited


def admissions(plan: ExplainRouteResponse) -> list[bool | None]:
    return [a.admitted if a.HasField("admitted") else None for a in plan.attempts]


def asked(hold: ReserveRequest) -> ReserveRequest:
    """What two of them have in common."""
    copy = ReserveRequest()
    copy.CopyFrom(hold)
    copy.ClearField("reservation_id")
    copy.ClearField("ttl_ms")
    return copy


@pytest.mark.parametrize("slice_tokens", [2, 4096])
async def test_each_attempt_is_asked_for_what_the_flow_reserves(slice_tokens: int) -> None:
    house = House(slice_tokens=slice_tokens)
    full = CapacityExhausted("full")
    house.local.script = [AttemptFailed(full, billing=Billing.NOTHING, fall_back=True)]
    plan = await house.explain(request())
    assert ([True, True], []) == (admissions(plan), house.ledger.reserves)
    await house.run(request())
    assert [asked(hold) for hold in house.ledger.reserves] == [
        asked(hold) for hold in house.ledger.previews
    ]
    ids = {hold.reservation_id for hold in house.ledger.previews + house.ledger.reserves}
    assert 4 == len(ids)


async def test_nothing_is_held_or_sent() -> None:
    house = House()
    await house.explain(request())
    assert ({}, [], []) == (house.ledger.held, house.local.calls, house.paid.calls)


async def test_a_refusal_is_told_whole() -> None:
    house = House()
    refused = limited(after_seconds=0.25)
    house.ledger.refusals = [refused]
    plan = await house.explain(request())
    assert [False, True] == admissions(plan)
    told = plan.attempts[0].refusal
    assert (refused.reason, refused.message, refused.metadata, 250) == (
        told.reason, told.message, dict(told.metadata), told.retry_after_ms,
    )  # fmt: skip
    assert not plan.attempts[1].HasField("refusal")


async def test_a_refusal_without_a_time_names_none() -> None:
    house = House()
    house.ledger.refusals = [Unauthenticated("revoked", reason="KEY_REVOKED")] * 2
    plan = await house.explain(request())
    assert ["KEY_REVOKED"] * 2 == [attempt.refusal.reason for attempt in plan.attempts]
    assert not any(attempt.refusal.HasField("retry_after_ms") for attempt in plan.attempts)


async def test_where_the_ledger_is_away_the_plan_is_told_and_nothing_of_money() -> None:
    house = House()
    house.ledger.down = Unavailable("away", reason="LEDGER_UNAVAILABLE")
    plan = await house.explain(request())
    assert [None, None] == admissions(plan)
    assert ["local", "acme"] == [attempt.provider for attempt in plan.attempts]
    assert not any(attempt.HasField("refusal") for attempt in plan.attempts)


async def test_what_the_cache_holds_is_told() -> None:
    house = House()
    assert not (await house.explain(request())).cached
    await house.run(request())
    assert (await house.explain(request())).cached


@pytest.mark.parametrize(
    "control", [CacheControl(no_cache=True), CacheControl(no_cache=True, no_store=True)]
)
async def test_what_goes_past_the_cache_is_not_cached(control: CacheControl) -> None:
    house = House()
    await house.run(request())
    assert not (await house.explain(replace(request(), cache_control=control))).cached


async def test_where_the_cache_is_off_nothing_is_cached() -> None:
    house = House()
    await house.run(request())
    house.catalogue = house.catalogue.model_copy(update={"cache": CacheSettings(enabled=False)})
    assert not (await house.explain(request())).cached


async def test_how_old_an_answer_may_be_is_asked_for() -> None:
    house = House()
    control = CacheControl(max_age_seconds=5)
    await house.explain(replace(request(), cache_control=control))
    asked_for = house.answers.asked[-1]
    assert (5, False, 0) == (
        asked_for.max_age_seconds,
        asked_for.join_flight,
        asked_for.wait_ms_max,
    )


async def test_an_answer_is_cached_although_nothing_else_can_answer() -> None:
    house = House()
    paid = request("acme/large")
    await house.run(paid)
    house.views.providers["acme"] = ProviderView("acme", enabled=True, retry_after_seconds=7)
    plan = await house.explain(paid)
    assert ([], ["provider_paused"], True) == (
        list(plan.attempts), [one.reason for one in plan.rejected], plan.cached,
    )  # fmt: skip
    with pytest.raises(CapacityExhausted):
        await house.explain(request("acme/large", max_tokens=7))


class Meeting(MemoryLedger):
    """Answers once two have asked."""

    def __init__(self) -> None:
        super().__init__()
        self._both = asyncio.Barrier(2)

    async def preview(self, request: ReserveRequest, deadline: Deadline) -> ReserveResponse:
        await self._both.wait()
        return await super().preview(request, deadline)


async def test_all_attempts_are_asked_for_at_once() -> None:
    async with asyncio.timeout(10):
        plan = await House(ledger=Meeting()).explain(request())
    assert [True, True] == admissions(plan)
