"""The flow at the edge of budgets and limits, over the real quota service and a real PostgreSQL."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.core.channel import connect
from penstock.core.errors import BudgetExceeded, CreditExhausted, RateLimited, Unauthenticated
from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import GetPrincipalRequest
from penstock.router.events import Delta, Event
from penstock.router.ledger import QuotaLedger
from penstock.router.v1.router_pb2 import CACHE_VERDICT_HIT
from penstock.type.v1.chat_pb2 import FINISH_REASON_BUDGET, FINISH_REASON_STOP
from support.flow_house import House, request
from support.ledger import migrated_database
from support.ports import local_words
from support.postgres import postgres_server
from support.quota_process import ADMIN, SERVICE, SERVICE_TOKEN, QuotaProcess, quota_process
from support.wait import until

__all__ = ["postgres_server"]

PROMPT_BOUND = (64 + 8 + 5) * 1_000
WORD = 2_000
TOKENS, IN_FLIGHT = admin_pb2.RateLimit.UNIT_TOKENS, admin_pb2.RateLimit.UNIT_IN_FLIGHT
REQUESTS = admin_pb2.RateLimit.UNIT_REQUESTS
MINUTE, TOTAL = admin_pb2.Budget.WINDOW_MINUTE, admin_pb2.Budget.WINDOW_TOTAL
DAY = admin_pb2.Budget.WINDOW_DAY


@dataclass
class Place:
    quota: QuotaProcess
    ledger: QuotaLedger

    async def key(self, limit_nano_usd: int | None) -> str:
        return (await self.quota.new_key(limit_nano_usd)).key.id

    async def limit(
        self, account_id: str, unit: int, most: int, window: int = TOTAL
    ) -> admin_pb2.RateLimit:
        ask = admin_pb2.SetRateLimitRequest(
            account_id=account_id, unit=unit, window=window, limit=most
        )
        return await self.quota.admin.SetRateLimit(ask, metadata=ADMIN)

    async def pool(self, provider: str, *, prepaid: bool = False) -> str:
        ask = admin_pb2.SetPoolRequest(
            name=f"pool-{provider}", providers=[provider], prepaid=prepaid
        )
        return (await self.quota.admin.SetPool(ask, metadata=ADMIN)).id


@asynccontextmanager
async def place_of(server: PrivateServer, folder: Path) -> AsyncIterator[Place]:
    """When it is left, the books must balance to the nano."""
    dsn = await migrated_database(server)
    async with quota_process(dsn, folder) as quota:
        channel = connect(quota.address)
        ledger = QuotaLedger(channel, SERVICE_TOKEN)
        try:
            yield Place(quota, ledger)
        finally:
            await ledger.drain(5)
            await channel.close()
    assert (await audit_dsn(dsn)).ok


@pytest.fixture
async def place(postgres_server: PrivateServer, tmp_path: Path) -> AsyncIterator[Place]:
    async with place_of(postgres_server, tmp_path) as found:
        yield found


def ends(events: list[Event]) -> list[int]:
    deltas = [d for e in events if isinstance(e, Delta) for d in e.deltas]
    return [d.finish_reason for d in deltas if d.finish_reason]


def words(events: list[Event]) -> int:
    deltas = [d for e in events if isinstance(e, Delta) for d in e.deltas]
    return len("".join(d.content for d in deltas).split())


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_ends_at_the_budgets_edge_and_costs_what_was_delivered(
    place: Place, stream: bool
) -> None:
    key_id = await place.key(PROMPT_BOUND + 45 * WORD)
    house = House(local=local_words(80), slice_tokens=20, ledger=place.ledger)
    events = await house.run(request("local/small", key_id=key_id, stream=stream))
    # Two slices fit, the third would pass the budget; one token is left for the end of the text.
    assert [FINISH_REASON_BUDGET] == ends(events)
    assert 39 == words(events)
    cost = 10 * 1_000 + 39 * WORD
    assert cost == events[-1].receipt.cost_nano_usd
    assert (cost, 0, 0) == await place.quota.balances(key_id)


async def test_a_key_revoked_in_mid_stream_ends_as_that_and_pays_what_was_delivered(
    place: Place,
) -> None:
    key_id = await place.key(10**9)
    house = House(local=local_words(80), slice_tokens=20, ledger=place.ledger)
    events: list[Event] = []

    async def read() -> None:
        async with aclosing(house.flow.run(request("local/small", key_id=key_id))) as flow:
            async for event in flow:
                if not words(events) and words([event]):
                    await place.quota.admin.RevokeKey(
                        admin_pb2.RevokeKeyRequest(key_id=key_id), metadata=ADMIN
                    )
                events.append(event)

    with pytest.raises(Unauthenticated) as ended:
        await read()

    cost = 10 * 1_000 + 19 * WORD
    assert ("KEY_REVOKED", str(cost)) == (ended.value.reason, ended.value.metadata["cost_nano_usd"])
    # The slice that it held was paid for; nothing says `budget`.
    assert ([], 19) == (ends(events), words(events))
    assert (cost, 0, 0) == await place.quota.balances(key_id)


async def test_a_long_answer_is_extended_and_settled_as_one(place: Place) -> None:
    key_id = await place.key(10**9)
    house = House(local=local_words(80), slice_tokens=20, ledger=place.ledger)
    events = await house.run(request("local/small", key_id=key_id))
    assert [FINISH_REASON_STOP] == ends(events)
    assert (10 * 1_000 + 80 * WORD, 0, 0) == await place.quota.balances(key_id)


async def test_streams_of_one_key_share_its_last_money_and_none_is_overspent(place: Place) -> None:
    limit = 5 * (PROMPT_BOUND + 60 * WORD)
    key_id = await place.key(limit)

    async def one(number: int) -> list[Event]:
        house = House(local=local_words(90), slice_tokens=20, ledger=place.ledger)
        return await house.run(request("local/small", key_id=key_id, text=f"text {number}"))

    results = await asyncio.gather(*(one(n) for n in range(12)), return_exceptions=True)
    answered = [r for r in results if isinstance(r, list)]
    refused = [r for r in results if isinstance(r, BudgetExceeded)]
    assert 12 == len(answered) + len(refused)
    assert any(ends(events) == [FINISH_REASON_BUDGET] for events in answered)
    posted = sum(events[-1].receipt.cost_nano_usd for events in answered)
    assert (posted, 0, 0) == await place.quota.balances(key_id)
    assert posted <= limit


async def test_a_limit_in_tokens_ends_a_stream_too(place: Place) -> None:
    key_id = await place.key(10**9)
    await place.limit(key_id, TOKENS, 77 + 45, DAY)
    house = House(local=local_words(80), slice_tokens=20, ledger=place.ledger)
    events = await house.run(request("local/small", key_id=key_id))
    assert ([FINISH_REASON_BUDGET], 39) == (ends(events), words(events))
    assert ["RATE_LIMITED"] == [a.outcome for a in events[-1].receipt.attempts]


async def test_a_pools_limit_in_flight_is_waited_for_until_the_call_ends(place: Place) -> None:
    key_id = await place.key(10**9)
    await place.limit(await place.pool("acme"), IN_FLIGHT, 1)
    house = House(paid=[None], ledger=place.ledger)
    first = asyncio.create_task(house.run(request("acme/large", key_id=key_id)))
    await until(lambda: house.paid.calls)
    house.paid.script = local_words(3)
    second = asyncio.create_task(
        house.run(request("acme/large", key_id=key_id, text="other", seconds=20))
    )
    await until(lambda: house.waiting.count == 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    events = await asyncio.wait_for(second, 10)
    assert 3 == words(events)


async def test_many_attempts_take_turns_at_a_pools_limit_in_flight(place: Place) -> None:
    key_id = await place.key(10**9)
    await place.limit(await place.pool("acme"), IN_FLIGHT, 2)
    house = House(paid=local_words(3), ledger=place.ledger)
    asks = [request("acme/large", key_id=key_id, text=f"text {n}", seconds=30) for n in range(15)]
    results = await asyncio.gather(*(house.run(ask) for ask in asks))
    assert [3] * 15 == [words(events) for events in results]


async def test_a_keys_own_limit_is_told_with_a_time_that_is_true(place: Place) -> None:
    key_id = await place.key(10**9)
    await place.limit(key_id, REQUESTS, 1, MINUTE)
    house = House(local=local_words(2), ledger=place.ledger)
    await house.run(request("local/small", key_id=key_id))
    with pytest.raises(RateLimited) as refused:
        await house.run(request("local/small", key_id=key_id, text="other"))
    assert refused.value.retry_after_seconds is not None
    assert 0 <= refused.value.retry_after_seconds <= 60
    assert ("key", "requests") == (
        refused.value.metadata["account_kind"], refused.value.metadata["unit"],
    )  # fmt: skip


async def test_a_hit_is_counted_against_the_keys_limit_in_requests(place: Place) -> None:
    created = await place.quota.new_key(10**9)
    key_id = created.key.id
    await place.limit(key_id, REQUESTS, 2, DAY)
    digest = hashlib.sha256(created.secret.encode()).digest()
    principal = await place.quota.quota.GetPrincipal(
        GetPrincipalRequest(key_hash=digest), metadata=SERVICE
    )
    assert principal.counts_requests
    house = House(local=local_words(2), ledger=place.ledger)
    ask = {"key_id": key_id, "counts_requests": True}
    await house.run(request("local/small", **ask))
    assert CACHE_VERDICT_HIT == (await house.run(request("local/small", **ask)))[-1].receipt.cache
    with pytest.raises(RateLimited):
        await house.run(request("local/small", **ask))
    assert (10 * 1_000 + 2 * WORD, 0, 0) == await place.quota.balances(key_id)


async def test_a_prepaid_pool_without_credit_is_told_as_such(place: Place) -> None:
    key_id = await place.key(10**12)
    pool_id = await place.pool("acme", prepaid=True)
    house = House(paid=local_words(3), ledger=place.ledger)
    with pytest.raises(CreditExhausted) as refused:
        await house.run(request("acme/large", key_id=key_id))
    facts = refused.value.metadata
    assert ("pool", pool_id) == (facts["account_kind"], facts["account_id"])


async def test_explain_says_of_money_what_the_flow_then_hears(place: Place) -> None:
    key_id = await place.key(1)
    house = House(ledger=place.ledger)
    plan = await house.explain(request("local/small", key_id=key_id))
    with pytest.raises(BudgetExceeded) as refused:
        await house.run(request("local/small", key_id=key_id))
    (attempt,) = plan.attempts
    told = attempt.refusal
    assert (False, "BUDGET_EXCEEDED") == (attempt.admitted, told.reason)
    assert refused.value.message == told.message
    assert "never" == told.metadata["resets_at"]
    assert dict(told.metadata).items() <= refused.value.metadata.items()
    assert (0, 0, 0) == await place.quota.balances(key_id)


async def test_explain_says_a_rate_limit_with_a_time_that_is_true(place: Place) -> None:
    key_id = await place.key(10**9)
    await place.limit(key_id, REQUESTS, 1, MINUTE)
    house = House(local=local_words(2), ledger=place.ledger)
    ask = request("local/small", key_id=key_id)
    assert (await house.explain(ask)).attempts[0].admitted
    await house.run(ask)
    told = (await house.explain(ask)).attempts[0].refusal
    assert ("RATE_LIMITED", "requests") == (told.reason, told.metadata["unit"])
    assert told.HasField("retry_after_ms")
    assert 0 <= told.retry_after_ms <= 60_000


async def test_explain_asks_for_the_first_slice_as_the_flow_does(place: Place) -> None:
    limit = PROMPT_BOUND + 45 * WORD
    key_id = await place.key(limit)
    house = House(local=local_words(80), slice_tokens=20, ledger=place.ledger)
    (attempt,) = (await house.explain(request("local/small", key_id=key_id))).attempts
    assert (True, True) == (attempt.admitted, attempt.cost_bound_nano_usd > limit)


async def test_explain_tells_the_attempts_of_a_plan_apart(place: Place) -> None:
    key_id = await place.key(10**12)
    await place.pool("acme", prepaid=True)
    plan = await House(ledger=place.ledger).explain(request(key_id=key_id))
    assert [(True, ""), (False, "CREDIT_EXHAUSTED")] == [
        (attempt.admitted, attempt.refusal.reason) for attempt in plan.attempts
    ]


async def test_explain_of_a_key_revoked_since_it_was_looked_up_says_so(place: Place) -> None:
    key_id = await place.key(10**9)
    await place.quota.admin.RevokeKey(admin_pb2.RevokeKeyRequest(key_id=key_id), metadata=ADMIN)
    (attempt,) = (
        await House(ledger=place.ledger).explain(request("local/small", key_id=key_id))
    ).attempts
    assert (False, "KEY_REVOKED") == (attempt.admitted, attempt.refusal.reason)


async def test_explain_does_without_a_ledger_that_is_away_or_knows_no_such_router(
    place: Place,
) -> None:
    key_id = await place.key(10**9)
    async with connect(place.quota.address) as channel:
        stranger = QuotaLedger(channel, "another token")
        for ledger in (stranger, place.ledger):
            plan = await House(ledger=ledger).explain(request("local/small", key_id=key_id))
            assert [ledger is stranger] == [not a.HasField("admitted") for a in plan.attempts]
    place.quota.process.kill()
    await place.quota.process.wait()
    plan = await House(ledger=place.ledger).explain(request("local/small", key_id=key_id))
    assert [False] == [attempt.HasField("admitted") for attempt in plan.attempts]
