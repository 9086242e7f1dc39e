"""PreviewReserve: what a reserve would answer, by the same rules, and nothing is left of it."""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from penstock.core.errors import Unavailable
from penstock.core.ids import uuid7
from penstock.quota.account import format_id
from penstock.quota.ledger import Answer, Reserve
from penstock.quota.store.ledger_store import PREVIEWS_MAX, Outcome, Timed
from penstock.quota.v1 import admin_pb2
from support.ledger import (
    BY_TEST,
    Ledger,
    cache_hit,
    expired,
    held,
    reserve,
    told,
)
from support.quota_process import (
    ADMIN,
    SERVICE,
    QuotaProcess,
    new_name,
    one_nano,
    reason_of,
    reserve_request,
    reserved,
)
from support.wait import until

TABLES = ("reservations", "entries", "buckets", "alerts")

Scenario = Callable[[Ledger], Awaitable[Reserve]]


async def admitted(ledger: Ledger) -> Reserve:
    return reserve(ledger.id(), await ledger.new_key(100))


async def first_of_its_window(ledger: Ledger) -> Reserve:
    """There is no bucket yet."""
    return reserve(ledger.id(), await ledger.new_key(100, "minute"))


async def counted(ledger: Ledger) -> Reserve:
    return cache_hit(ledger.id(), await ledger.new_key(100))


async def over_budget(ledger: Ledger) -> Reserve:
    key_id = await ledger.new_key(100, "month")
    await held(ledger, key_id, "paid")
    return reserve(ledger.id(), key_id, 61)


async def behind_an_abandoned_hold(ledger: Ledger) -> Reserve:
    """It is resolved on the way: there is room again."""
    key_id = await ledger.new_key(100)
    await expired(ledger, key_id, "local")
    return reserve(ledger.id(), key_id, 61)


async def behind_one_that_moves_to_suspense_and_warns(ledger: Ledger) -> Reserve:
    _, _, key_id = await ledger.new_path()
    await ledger.budget("key", key_id, 100, soft_percents=(30,))
    await expired(ledger, key_id, "paid")
    return reserve(ledger.id(), key_id, 61)


async def over_a_rate_limit(ledger: Ledger) -> Reserve:
    key_id = await ledger.new_key(100)
    await ledger.budget("key", key_id, 0, "minute", unit="requests")
    return reserve(ledger.id(), key_id)


async def without_credit(ledger: Ledger) -> Reserve:
    org_id, _, key_id = await ledger.new_path(prepaid=True)
    await ledger.budget("key", key_id, 100)
    await ledger.grant("org", org_id, 5)
    return reserve(ledger.id(), key_id)


async def with_some_credit(ledger: Ledger) -> Reserve:
    org_id, _, key_id = await ledger.new_path(prepaid=True)
    await ledger.budget("key", key_id, 100)
    await ledger.grant("org", org_id, 10)
    return reserve(ledger.id(), key_id)


async def without_a_budget(ledger: Ledger) -> Reserve:
    _, _, key_id = await ledger.new_path()
    return reserve(ledger.id(), key_id)


async def of_a_revoked_key(ledger: Ledger) -> Reserve:
    key_id = await ledger.new_key(100)
    await ledger.accounts.revoke_key(BY_TEST, key_id)
    return reserve(ledger.id(), key_id)


async def of_a_suspended_team(ledger: Ledger) -> Reserve:
    _, team_id, key_id = await ledger.new_path()
    await ledger.budget("key", key_id, 100)
    await ledger.accounts.update_account(BY_TEST, "team", team_id, suspended=True)
    return reserve(ledger.id(), key_id)


async def of_an_unknown_key(ledger: Ledger) -> Reserve:
    return reserve(ledger.id(), 2**40)


async def asked_before(ledger: Ledger) -> Reserve:
    key_id = await ledger.new_key(100)
    return reserve(await held(ledger, key_id, "paid"), key_id, 40)


async def under_the_id_of_another(ledger: Ledger) -> Reserve:
    key_id = await ledger.new_key(100)
    return reserve(await held(ledger, key_id, "paid"), key_id, 41)


SCENARIOS: dict[Scenario, str] = {
    admitted: "ok",
    first_of_its_window: "ok",
    counted: "ok",
    over_budget: "BUDGET_EXCEEDED",
    behind_an_abandoned_hold: "ok",
    behind_one_that_moves_to_suspense_and_warns: "BUDGET_EXCEEDED",
    over_a_rate_limit: "RATE_LIMITED",
    without_credit: "CREDIT_EXHAUSTED",
    with_some_credit: "ok",
    without_a_budget: "BUDGET_MISSING",
    of_a_revoked_key: "KEY_REVOKED",
    of_a_suspended_team: "ACCOUNT_SUSPENDED",
    of_an_unknown_key: "KEY_UNKNOWN",
    asked_before: "ok",
    under_the_id_of_another: "RESERVATION_ID_REUSED",
}


async def everything(ledger: Ledger) -> list[list[asyncpg.Record]]:
    return [await ledger.fetch(f"SELECT * FROM {name} ORDER BY id") for name in TABLES]


def in_full(outcome: Outcome) -> object:
    if isinstance(outcome, Answer):
        return outcome
    return (
        type(outcome), outcome.reason, outcome.message, outcome.metadata,
        outcome.retry_after_seconds,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "expected"), SCENARIOS.items(), ids=[s.__name__ for s in SCENARIOS]
)
async def test_a_preview_answers_as_the_reserve_does_and_leaves_nothing_behind(
    ledger: Ledger, scenario: Scenario, expected: str
) -> None:
    asked = await scenario(ledger)
    before = await everything(ledger)

    preview = await ledger.store.preview(Timed(asked))

    assert expected == told(preview)
    assert before == await everything(ledger)
    # Nor was it remembered: the same id is free.
    assert in_full(preview) == in_full(await ledger.one(asked))


async def test_what_a_preview_was_refused_may_be_reserved_once_there_is_room(
    ledger: Ledger,
) -> None:
    key_id = await ledger.new_key(5)
    asked = reserve(ledger.id(), key_id, 10)
    assert "BUDGET_EXCEEDED" == told(await ledger.store.preview(Timed(asked)))
    await ledger.budget("key", key_id, 10)
    assert "ok" == told(await ledger.one(asked))


async def test_a_preview_whose_caller_has_gone_says_so(ledger: Ledger) -> None:
    asked = reserve(ledger.id(), await ledger.new_key(100))
    assert "DEADLINE_EXCEEDED" == told(await ledger.store.preview(Timed(asked, left_ms=0)))


async def test_previews_and_reserves_of_one_key_go_on_beside_each_other(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)

    async def previewed() -> str:
        return told(await ledger.store.preview(Timed(reserve(ledger.id(), key_id))))

    async def taken() -> str:
        return told(await ledger.one(reserve(ledger.id(), key_id)))

    outcomes = await asyncio.gather(*(work() for _ in range(10) for work in (previewed, taken)))
    assert {"ok", "BUDGET_EXCEEDED"} >= set(outcomes[::2])
    assert ["ok"] * 10 == outcomes[1::2]
    assert (0, 100, 0) == await ledger.balances("key", key_id)


async def test_a_preview_waits_less_for_a_lock_than_a_reserve_does(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    await held(ledger, key_id, "paid")
    connection = await asyncpg.connect(ledger.dsn)
    async with connection.transaction():
        await connection.execute("SELECT FROM buckets FOR UPDATE")
        reserving = asyncio.create_task(ledger.one(reserve(ledger.id(), key_id)))
        await until(ledger.is_blocked)
        with pytest.raises(Unavailable) as busy:
            await ledger.store.preview(Timed(reserve(ledger.id(), key_id)))
        # It came later and went earlier.
        assert ("LEDGER_BUSY", False) == (busy.value.reason, reserving.done())
    await connection.close()
    assert "ok" == told(await reserving)


async def test_previews_wait_in_turn_so_that_connections_are_left(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    await held(ledger, key_id, "paid")
    waiting = (
        "SELECT count(*) AS count FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    connection = await asyncpg.connect(ledger.dsn)
    async with connection.transaction():
        await connection.execute("SELECT FROM buckets FOR UPDATE")
        asked = [Timed(reserve(ledger.id(), key_id)) for _ in range(4)]
        previews = asyncio.gather(*map(ledger.store.preview, asked), return_exceptions=True)
        most = 0
        while not previews.done():
            most = max(most, (await ledger.fetch(waiting))[0]["count"])
    await connection.close()
    assert ["LEDGER_BUSY"] * 4 == [busy.reason for busy in await previews]
    assert PREVIEWS_MAX == most


async def test_over_the_wire_it_names_the_budget_and_holds_nothing(quota: QuotaProcess) -> None:
    key_id = (await quota.new_key(100, name=new_name())).key.id
    fits, does_not = (reserve_request(uuid7(), key_id, amount) for amount in (100, 101))

    answer = await quota.quota.PreviewReserve(fits, metadata=SERVICE)
    assert (fits.reservation_id, 0) == (answer.reservation_id, answer.remaining_nano_usd)
    refused = await reason_of(quota.quota.PreviewReserve(does_not, metadata=SERVICE))
    assert "RESOURCE_EXHAUSTED BUDGET_EXCEEDED" == refused

    assert (0, 0, 0) == await quota.balances(key_id)
    assert "ok" == await reserved(quota, fits)


async def test_over_the_wire_a_revoked_key_and_a_malformed_request_are_told(
    quota: QuotaProcess,
) -> None:
    key_id = (await quota.new_key(100, name=new_name())).key.id
    await quota.admin.RevokeKey(admin_pb2.RevokeKeyRequest(key_id=key_id), metadata=ADMIN)
    for request, expected in (
        (one_nano(key_id), "UNAUTHENTICATED KEY_REVOKED"),
        (one_nano(format_id("key", 2**40)), "NOT_FOUND KEY_UNKNOWN"),
        (one_nano(key_id, ttl_ms=0), await reserved(quota, one_nano(key_id, ttl_ms=0))),
    ):
        call = quota.quota.PreviewReserve(request, metadata=SERVICE)
        assert expected == await reason_of(call)
        assert expected == await reserved(quota, request)
    assert await reason_of(quota.quota.PreviewReserve(one_nano(key_id))) == (
        "UNAUTHENTICATED SERVICE_TOKEN_INVALID"
    )
