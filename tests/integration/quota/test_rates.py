"""Rate limits: requests, tokens, in flight, of keys and of a provider (LEDGER, "Rate limits").

A refusal says when to come again, and that is true; or says nothing, where it never would be.
"""

from datetime import UTC, datetime, timedelta

import pytest

from penstock.quota.refusals import RateRefused
from support.ledger import Ledger, cache_hit, expired, extend, reserve, settle, told, void

SECONDS_LEFT = 40
"""Of the minute in which these tests run."""
NOW = datetime(2026, 11, 24, 12, 0, 20, tzinfo=UTC)


async def limited_key(ledger: Ledger, unit: str, limit: int, window: str = "minute") -> int:
    """A key with money without end, and one limit."""
    await ledger.set_clock(NOW)
    key_id = await ledger.new_key(None)
    await ledger.budget("key", key_id, limit, window, unit=unit)
    return key_id


async def refusal(ledger: Ledger, *operations) -> RateRefused:
    """Of the last of them, applied in one batch."""
    outcome = (await ledger.apply(*operations))[-1]
    assert isinstance(outcome, RateRefused), outcome
    return outcome


async def test_three_requests_a_minute_are_three(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "requests", 3)
    ids = [ledger.id() for _ in range(3)]
    await ledger.apply(*(reserve(id_, key_id) for id_ in ids))
    await ledger.apply(settle(ids[0], 5))  # what was done, was done

    refused = await refusal(ledger, reserve(ledger.id(), key_id))

    assert refused.retry_after_seconds == SECONDS_LEFT
    assert (3, 3, 1) == (refused.facts.limit, refused.facts.used, refused.facts.requested)
    assert await ledger.balances("key", key_id, "minute", "requests") == (1, 2, 0)
    await ledger.advance(timedelta(seconds=SECONDS_LEFT - 1))
    assert told(await ledger.one(reserve(ledger.id(), key_id))) == "RATE_LIMITED"
    await ledger.advance(timedelta(seconds=1))
    assert told(await ledger.one(reserve(ledger.id(), key_id))) == "ok"


@pytest.mark.parametrize("unit", ["requests", "tokens"])
async def test_a_refusal_names_the_zone_and_the_reset_of_its_window(
    ledger: Ledger, unit: str
) -> None:
    await ledger.set_clock(NOW)
    key_id = await ledger.new_key(None)
    await ledger.budget("key", key_id, 1, "day", "Asia/Tokyo", unit=unit, name="pace")
    await ledger.one(reserve(ledger.id(), key_id, tokens=1))

    refused = await refusal(ledger, reserve(ledger.id(), key_id, tokens=1))

    assert refused.message.startswith("limit 'pace' (day, Asia/Tokyo) of key ")
    assert refused.message.endswith("; it resets at 2026-11-24T15:00:00Z")
    assert 10_780 == refused.retry_after_seconds


async def test_a_voided_request_frees_its_place(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "requests", 1)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id))
    await ledger.apply(void(id_))

    assert told(await ledger.one(reserve(ledger.id(), key_id))) == "ok"


@pytest.mark.parametrize("unit", ["requests", "tokens", "in_flight"])
async def test_a_limit_of_zero_never_frees_up(ledger: Ledger, unit: str) -> None:
    key_id = await limited_key(ledger, unit, 0, "total" if unit == "in_flight" else "minute")

    refused = await refusal(ledger, reserve(ledger.id(), key_id, tokens=1))

    assert refused.retry_after_seconds is None


async def test_tokens_are_held_and_what_was_used_is_posted(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "tokens", 100)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, tokens=80))
    refused = await refusal(ledger, reserve(ledger.id(), key_id, tokens=21))
    assert refused.retry_after_seconds == SECONDS_LEFT

    await ledger.apply(settle(id_, 1, prompt_tokens=30, completion_tokens=20))

    assert await ledger.balances("key", key_id, "minute", "tokens") == (50, 0, 0)
    assert told(await ledger.one(reserve(ledger.id(), key_id, tokens=50))) == "ok"


async def test_more_tokens_than_the_limit_are_never_to_be_retried(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "tokens", 100)

    refused = await refusal(ledger, reserve(ledger.id(), key_id, tokens=101))

    assert refused.retry_after_seconds is None


async def test_more_tokens_than_were_held_block_the_rest_of_the_window(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "tokens", 100)
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, tokens=80))
    await ledger.apply(settle(id_, 1, prompt_tokens=80, completion_tokens=40))

    assert told(await ledger.one(reserve(ledger.id(), key_id, tokens=0))) == "RATE_LIMITED"
    await ledger.advance(timedelta(seconds=SECONDS_LEFT))
    assert told(await ledger.one(reserve(ledger.id(), key_id, tokens=100))) == "ok"


async def test_in_flight_frees_up_with_settle_void_and_expiry(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "in_flight", 1, "total")
    first, second, third = ledger.id(), ledger.id(), ledger.id()
    await ledger.apply(reserve(first, key_id))
    refused = await refusal(ledger, reserve(ledger.id(), key_id))
    assert refused.retry_after_seconds == 60

    await ledger.apply(settle(first, 1))
    assert told(await ledger.one(reserve(second, key_id))) == "ok"
    await ledger.apply(void(second))
    assert told(await ledger.one(reserve(third, key_id, pool="paid"))) == "ok"
    await ledger.advance(timedelta(seconds=60))

    assert told(await ledger.one(reserve(ledger.id(), key_id))) == "ok"
    assert await ledger.balances("key", key_id, "total", "in_flight") == (0, 1, 0)


async def test_in_flight_frees_up_by_the_first_expiry_of_its_own_batch(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "in_flight", 2, "total")

    refused = await refusal(
        ledger,
        reserve(ledger.id(), key_id, ttl_ms=90_000),
        reserve(ledger.id(), key_id, ttl_ms=30_000),
        reserve(ledger.id(), key_id),
    )

    assert refused.retry_after_seconds == 30


async def test_what_is_settled_in_the_same_batch_frees_its_place_and_is_not_waited_for(
    ledger: Ledger,
) -> None:
    key_id = await limited_key(ledger, "in_flight", 1, "total")
    first = ledger.id()
    await ledger.apply(reserve(first, key_id, ttl_ms=5_000))

    refused = await refusal(
        ledger,
        settle(first, 1),
        reserve(ledger.id(), key_id, ttl_ms=70_000),
        reserve(ledger.id(), key_id),
    )

    assert refused.retry_after_seconds == 70


async def test_an_abandoned_paid_request_still_counts_in_its_window(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "requests", 1, "hour")
    id_ = await expired(ledger, key_id, "paid")

    assert told(await ledger.one(reserve(ledger.id(), key_id))) == "RATE_LIMITED"
    assert await ledger.balances("key", key_id, "hour", "requests") == (0, 0, 1)
    await ledger.apply(settle(id_, 1))
    assert await ledger.balances("key", key_id, "hour", "requests") == (1, 0, 0)


async def test_a_hit_of_the_cache_counts_as_a_request_and_costs_nothing(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "requests", 2)
    await ledger.budget("key", key_id, 0, "total")
    await ledger.budget("key", key_id, 0, "minute", unit="tokens")
    await ledger.budget("key", key_id, 0, unit="in_flight")
    id_ = ledger.id()

    answers = await ledger.apply(*(cache_hit(i, key_id) for i in (id_, ledger.id(), ledger.id())))

    assert [told(a) for a in answers] == ["ok", "ok", "RATE_LIMITED"]
    assert await ledger.balances("key", key_id, "minute", "requests") == (2, 0, 0)
    assert told(await ledger.one(cache_hit(id_, key_id))) == "ok"
    assert await ledger.balances("key", key_id, "minute", "requests") == (2, 0, 0)


async def test_a_hit_needs_no_budget_of_money(ledger: Ledger) -> None:
    _, _, key_id = await ledger.new_path()

    assert told(await ledger.one(cache_hit(ledger.id(), key_id))) == "ok"


async def test_the_first_full_limit_of_the_path_is_named(ledger: Ledger) -> None:
    org_id, team_id, key_id = await ledger.new_path()
    await ledger.budget("team", team_id, 100)
    await ledger.budget("key", key_id, 0, "minute", unit="requests")
    await ledger.budget("org", org_id, 0, "day", unit="tokens")

    refused = await refusal(ledger, reserve(ledger.id(), key_id, tokens=1))

    assert ("org", org_id, "tokens", "day") == (
        refused.facts.account_kind,
        refused.facts.account_id,
        refused.facts.unit,
        refused.facts.window,
    )
    assert await ledger.balances("team", team_id) == (0, 0, 0)


async def test_a_refused_request_takes_no_place_anywhere(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "requests", 5)
    await ledger.budget("key", key_id, 100)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 101))) == "BUDGET_EXCEEDED"

    assert await ledger.balances("key", key_id, "minute", "requests") == (0, 0, 0)


async def test_an_extension_holds_tokens_but_is_no_request(ledger: Ledger) -> None:
    key_id = await limited_key(ledger, "requests", 1)
    await ledger.budget("key", key_id, 100, "minute", unit="tokens")
    await ledger.budget("key", key_id, 1, unit="in_flight")
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 10, tokens=40))

    assert told(await ledger.one(extend(id_, 20, 100))) == "ok"
    assert told(await ledger.one(extend(id_, 20, 101))) == "RATE_LIMITED"

    assert await ledger.balances("key", key_id, "minute", "tokens") == (0, 100, 0)
    assert await ledger.balances("key", key_id, "minute", "requests") == (0, 1, 0)
    assert await ledger.balances("key", key_id, "total", "in_flight") == (0, 1, 0)


@pytest.mark.parametrize("unit", ["requests", "tokens"])
async def test_windows_of_a_limit_are_opened_each_minute(ledger: Ledger, unit: str) -> None:
    key_id = await limited_key(ledger, unit, 1)
    for _ in range(3):
        answers = await ledger.apply(*(reserve(ledger.id(), key_id, tokens=1) for _ in range(2)))
        assert [told(a) for a in answers] == ["ok", "RATE_LIMITED"]
        await ledger.advance(timedelta(minutes=1))
