"""Extend: to a total, in the windows and budgets of the hold, or not at all (LEDGER, I9)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from penstock.quota.budget import Scope
from penstock.quota.ledger import Answer
from penstock.quota.refusals import RateRefused
from penstock.quota.store.ledger_store import LedgerStore, Timed
from support.ledger import Ledger, expired, extend, held, reserve, settle, told, void
from support.wait import until


async def test_a_limit_in_tokens_refuses_it_without_promising_that_a_later_window_helps(
    ledger: Ledger,
) -> None:
    key_id = await ledger.new_key(1000)
    await ledger.budget("key", key_id, 100, "minute", unit="tokens")
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, tokens=80, ttl_ms=600_000))
    for _ in range(2):
        refused = await ledger.one(extend(id_, 10, 101))
        assert isinstance(refused, RateRefused)
        assert refused.retry_after_seconds is None
        await ledger.advance(timedelta(minutes=1))


async def test_it_lives_for_so_long_from_now_and_never_shorter(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = await held(ledger, key_id, "paid")
    await ledger.advance(timedelta(seconds=30))

    longer = await ledger.one(extend(id_, 40, ttl_ms=60_000))
    shorter = await ledger.one(extend(id_, 50, ttl_ms=1_000))

    assert isinstance(longer, Answer)
    assert isinstance(shorter, Answer)
    assert longer.expires_at == ledger.now + timedelta(seconds=60)
    assert shorter.expires_at == longer.expires_at
    assert shorter.amount_nano_usd == 50


async def test_a_refused_extension_changes_neither_the_hold_nor_its_life(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = await held(ledger, key_id, "local")
    await ledger.advance(timedelta(seconds=30))

    assert told(await ledger.one(extend(id_, 101, ttl_ms=600_000))) == "BUDGET_EXCEEDED"
    assert await ledger.balances("key", key_id) == (0, 40, 0)

    await ledger.advance(timedelta(seconds=31))
    assert told(await ledger.one(extend(id_, 41))) == "RESERVATION_EXPIRED"
    assert await ledger.balances("key", key_id) == (0, 0, 0)


async def test_a_refused_extension_may_be_asked_for_again(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_, other = await held(ledger, key_id, "paid"), ledger.id()
    await ledger.apply(reserve(other, key_id, 60))
    assert told(await ledger.one(extend(id_, 41))) == "BUDGET_EXCEEDED"

    await ledger.apply(void(other))

    assert told(await ledger.one(extend(id_, 41))) == "ok"


async def test_extends_out_of_order_leave_the_largest(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = await held(ledger, key_id, "paid")
    for total in (70, 50, 70, 60):
        assert told(await ledger.one(extend(id_, total))) == "ok"

    assert await ledger.balances("key", key_id) == (0, 70, 0)


async def test_it_counts_in_the_window_in_which_the_hold_was_made(ledger: Ledger) -> None:
    await ledger.set_clock(datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC))
    key_id = await ledger.new_key(100, "month")
    id_ = await held(ledger, key_id, "paid")
    await ledger.advance(timedelta(seconds=20))
    assert told(await ledger.one(reserve(ledger.id(), key_id, 100))) == "ok"

    assert told(await ledger.one(extend(id_, 90))) == "ok"
    assert told(await ledger.one(extend(id_, 101))) == "BUDGET_EXCEEDED"

    assert await ledger.balances("key", key_id, "month") == (0, 100, 0)
    rows = await ledger.fetch(
        "SELECT b.held FROM buckets b JOIN budgets x ON x.id = b.budget_id"
        " WHERE x.account_id = $1 ORDER BY b.window_key",
        key_id,
    )
    assert [90, 100] == [row[0] for row in rows]


async def test_it_holds_in_every_bucket_of_the_path_or_in_none(ledger: Ledger) -> None:
    org_id, team_id, key_id = await ledger.new_path()
    await ledger.budget("org", org_id, 1000)
    await ledger.budget("org", org_id, 900, "month")
    await ledger.budget("team", team_id, 70)
    await ledger.budget("key", key_id, None)
    id_ = await held(ledger, key_id, "paid")
    places = [("org", org_id, "total"), ("org", org_id, "month"), ("team", team_id, "total")]

    assert told(await ledger.one(extend(id_, 71))) == "BUDGET_EXCEEDED"
    assert {(0, 40, 0)} == {await ledger.balances(*place) for place in places}

    answer = await ledger.one(extend(id_, 60))
    assert isinstance(answer, Answer)
    assert answer.remaining_nano_usd == 10
    assert {(0, 60, 0)} == {await ledger.balances(*place) for place in places}


async def test_a_budget_that_is_set_later_does_not_bind_it(ledger: Ledger) -> None:
    org_id, _, key_id = await ledger.new_path()
    await ledger.budget("key", key_id, 100)
    id_ = await held(ledger, key_id, "paid")
    await ledger.budget("org", org_id, 0)

    assert told(await ledger.one(extend(id_, 60))) == "ok"
    assert await ledger.balances("org", org_id) == (0, 0, 0)


async def test_a_lowered_limit_binds_it(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = await held(ledger, key_id, "paid")
    await ledger.budget("key", key_id, 50)

    assert told(await ledger.one(extend(id_, 51))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(extend(id_, 50))) == "ok"


async def test_an_extension_of_nothing_passes_where_the_budget_is_overdrawn(
    ledger: Ledger,
) -> None:
    key_id = await ledger.new_key(100)
    id_, other = await held(ledger, key_id, "paid"), await held(ledger, key_id, "paid")
    await ledger.apply(settle(other, 150))

    assert told(await ledger.one(extend(id_, 40, ttl_ms=120_000))) == "ok"
    assert told(await ledger.one(extend(id_, 41))) == "BUDGET_EXCEEDED"


async def test_it_draws_grants_and_gives_them_back(ledger: Ledger) -> None:
    _, _, key_id = await ledger.new_path()
    await ledger.budget("key", key_id, 1000)
    first = await ledger.grant("key", key_id, 50, ends_in=timedelta(days=1))
    second = await ledger.grant("key", key_id, 50, ends_in=timedelta(days=2))
    id_ = await held(ledger, key_id, "paid")

    await ledger.apply(extend(id_, 70))
    assert await ledger.credit(first) == (0, 50, 0, 0)
    assert await ledger.credit(second) == (0, 20, 0, 0)
    await ledger.apply(settle(id_, 45))

    assert await ledger.credit(first) == (45, 0, 0, 0)
    assert await ledger.credit(second) == (0, 0, 0, 0)


async def test_a_prepaid_stream_ends_where_its_credit_does(ledger: Ledger) -> None:
    org_id, _, key_id = await ledger.new_path(prepaid=True)
    await ledger.budget("org", org_id, None)
    grant = await ledger.grant("org", org_id, 50)
    id_ = await held(ledger, key_id, "paid")

    assert told(await ledger.one(extend(id_, 51))) == "CREDIT_EXHAUSTED"
    assert await ledger.credit(grant) == (0, 40, 0, 0)
    assert told(await ledger.one(extend(id_, 50))) == "ok"
    assert await ledger.credit(grant) == (0, 50, 0, 0)


async def test_extends_of_one_batch_share_what_is_left(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    first, second = await held(ledger, key_id, "paid"), await held(ledger, key_id, "paid")

    answers = await ledger.apply(extend(first, 55), extend(second, 46), extend(ledger.id(), 1))

    assert [told(a) for a in answers] == ["ok", "BUDGET_EXCEEDED", "RESERVATION_UNKNOWN"]
    assert await ledger.balances("key", key_id) == (0, 95, 0)


async def test_extend_and_settle_of_an_expired_extension_agree(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = await expired(ledger, key_id, "paid")

    answers = await ledger.apply(extend(id_, 90), reserve(ledger.id(), key_id, 60))

    assert [told(a) for a in answers] == ["RESERVATION_EXPIRED", "ok"]
    assert await ledger.balances("key", key_id) == (0, 60, 40)


async def test_an_extension_that_commits_while_its_hold_is_found_abandoned_leaks_no_slice(
    ledger: Ledger,
) -> None:
    """The batch that finds it has collected its locks before it knew of the new slice."""
    _, _, key_id = await ledger.new_path()
    await ledger.budget("key", key_id, 1000)
    credit = await ledger.grant("key", key_id, 100, scope=Scope(models=("small",)))
    id_ = ledger.id()
    await ledger.apply(reserve(id_, key_id, 0, model="small", pool="local"))
    async with ledger.database.connection() as connection, connection.transaction():
        await LedgerStore(OneConnection(connection)).apply([Timed(extend(id_, 40))])
        await ledger.advance(timedelta(minutes=2))
        finding = asyncio.create_task(ledger.one(reserve(ledger.id(), key_id, 5, model="large")))
        await until(ledger.is_blocked)
    assert told(await finding) == "ok"

    await ledger.store.sweep()

    assert await ledger.balances("key", key_id) == (0, 5, 0)
    assert await ledger.credit(credit) == (0, 0, 0, 0)


class OneConnection:
    """A database whose transactions are the test's."""

    def __init__(self, connection: object) -> None:
        self._connection = connection

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[object]:
        yield self._connection
