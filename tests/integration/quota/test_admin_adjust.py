"""Adjustments and resolutions by operators: what moves, once, with who and why."""

import asyncio
from datetime import timedelta

import pytest

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.quota.admin_service import AdminParts
from penstock.quota.budget import Scope
from penstock.quota.v1 import admin_pb2, quota_pb2
from support.admin import OPERATOR, TRY, configured, fails, new_path, snapshot
from support.ledger import Ledger, expired, held, reserve, settle, told, void


def adjust(amount: int, **fields: object) -> admin_pb2.AdjustRequest:
    defaults: dict[str, object] = {"adjustment_key": uuid7()}
    return admin_pb2.AdjustRequest(
        amount_nano_usd=amount,
        **(defaults | fields),
    )


async def settled(ledger: Ledger, key_id: int, amount: int, used: int) -> str:
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(reserve(id_, key_id, amount)))
    assert "ok" == told(await ledger.one(settle(id_, used)))
    return id_


async def test_an_account_is_adjusted_with_every_level_above_it(
    ledger: Ledger, admin: AdminParts
) -> None:
    org, team, key = await ledger.new_path()
    await ledger.budget("org", org, 1000, "month")
    await ledger.budget("team", team, None)
    await ledger.budget("key", key, 10)
    await ledger.budget("team", team, 5, "minute", unit="requests")
    closed = await ledger.budget("key", key, 10, "day", name="closed")
    await ledger.budgets.close_budget(OPERATOR, closed, money=True)

    answer, _ = await admin.adjustments.adjust(adjust(30, account_id=f"team_{team}"), OPERATOR)
    entry = answer.entry
    assert ("adjust", 30, f"team_{team}", "", "ops@example.org", "ticket 7") == (
        entry.operation,
        entry.posted_nano_usd,
        entry.account_id,
        entry.key_id,
        entry.actor,
        entry.reason,
    )
    await admin.adjustments.adjust(adjust(12, account_id=f"key_{key}"), OPERATOR)
    await admin.adjustments.adjust(adjust(-2, account_id=f"key_{key}"), OPERATOR)

    assert (40, 0, 0) == await ledger.balances("org", org, "month")
    assert (40, 0, 0) == await ledger.balances("team", team)
    assert (10, 0, 0) == await ledger.balances("key", key)
    assert (0, 0, 0) == await ledger.balances("key", key, "day")
    assert (0, 0, 0) == await ledger.balances("team", team, "minute", unit="requests")
    assert "BUDGET_EXCEEDED" == told(await ledger.one(reserve(ledger.id(), key, 1)))


async def test_what_was_not_posted_cannot_be_given_back(ledger: Ledger, admin: AdminParts) -> None:
    key_id = await ledger.new_key(1000)
    await settled(ledger, key_id, 50, 30)
    await ledger.budget("key", key_id, 1000, "day")
    before = await snapshot(ledger)

    # The day's budget has seen nothing of it.
    request = adjust(-1, account_id=f"key_{key_id}")
    expected = "FAILED_PRECONDITION ADJUSTMENT_BELOW_ZERO"
    assert expected == await fails(admin.adjustments.adjust(request, OPERATOR))
    assert before == await snapshot(ledger)


async def test_an_adjustment_is_made_once_whoever_repeats_it(
    ledger: Ledger, admin: AdminParts
) -> None:
    key_id = await ledger.new_key(1000)
    id_ = await settled(ledger, key_id, 50, 30)
    request = adjust(5, reservation_id=id_)

    made = await asyncio.gather(*(admin.adjustments.adjust(request, OPERATOR) for _ in range(5)))

    assert [made[0][0]] * 5 == [answer for answer, _ in made]
    assert [False, *[True] * 4] == sorted(is_repeat for _, is_repeat in made)
    assert (35, 0, 0) == await ledger.balances("key", key_id)
    before = await snapshot(ledger)
    for other, told_ in (
        (
            adjust(6, reservation_id=id_, adjustment_key=request.adjustment_key),
            {"amount_nano_usd": "was 0.000000005 USD"},
        ),
        (
            adjust(5, account_id=f"key_{key_id}", adjustment_key=request.adjustment_key),
            {"account_id": "was not given", "reservation_id": f"was {id_!r}"},
        ),
    ):
        with pytest.raises(errors.Conflict) as refused:
            await admin.adjustments.adjust(other, OPERATOR)
        assert "ADJUSTMENT_KEY_REUSED" == refused.value.reason
        assert told_ == {v.field: v.description for v in refused.value.violations}
        assert all(field in refused.value.message for field in told_)
    assert before == await snapshot(ledger)


async def test_a_dry_run_adjusts_nothing(ledger: Ledger, admin: AdminParts) -> None:
    key_id = await ledger.new_key(1000)
    id_ = await settled(ledger, key_id, 50, 30)
    before = await snapshot(ledger)

    for request in (adjust(5, reservation_id=id_), adjust(5, account_id=f"key_{key_id}")):
        answer, _ = await admin.adjustments.adjust(request, TRY)
        assert 5 == answer.entry.posted_nano_usd
        assert 5 == sum(on.amount_nano_usd for on in answer.posted_on)
    assert before == await snapshot(ledger)


async def test_an_adjustment_of_an_account_names_the_budgets_that_it_is_posted_on(
    ledger: Ledger, admin: AdminParts
) -> None:
    org, team, key = await ledger.new_path()
    scope = Scope(models=("gpt-4o*",), tags={"job": "x"})
    of_team = await ledger.budget("team", team, None, name="some", scope=scope)
    of_org = await ledger.budget("org", org, 1000, "month", name="all")
    closed = await ledger.budget("team", team, 10, "day", name="closed")
    await ledger.budgets.close_budget(OPERATOR, closed, money=True)
    await ledger.budget("team", team, 5, "minute", unit="requests")
    await ledger.budget("key", key, 10)
    await ledger.grant("team", team, 50)
    request = adjust(30, account_id=f"team_{team}")

    tried, _ = await admin.adjustments.adjust(request, TRY)
    made, _ = await admin.adjustments.adjust(request, OPERATOR)

    told_scope = admin_pb2.Scope(models=["gpt-4o*"], tags={"job": "x"})
    assert [
        admin_pb2.PostedOn(
            id=f"budget_{of_org}", name="all", account_id=f"org_{org}", scope={},
            amount_nano_usd=30,
        ),
        admin_pb2.PostedOn(
            id=f"budget_{of_team}", name="some", account_id=f"team_{team}", scope=told_scope,
            amount_nano_usd=30,
        ),
    ] == list(made.posted_on)  # fmt: skip
    assert made.posted_on == tried.posted_on
    # What was closed or opened since then changes nothing of it.
    await ledger.budgets.close_budget(OPERATOR, of_team, money=True)
    await ledger.budget("team", team, 7, "week")
    again, is_repeat = await admin.adjustments.adjust(request, OPERATOR)
    assert (made, True) == (again, is_repeat)


async def test_an_adjustment_of_an_attempt_names_the_grants_too(
    ledger: Ledger, admin: AdminParts
) -> None:
    org, _, key_id = await ledger.new_path()
    budget = await ledger.budget("org", org, 1000, "month")
    await ledger.budget("key", key_id, 100, "minute", unit="requests")
    first = await ledger.grant("key", key_id, 20, ends_in=timedelta(days=1))
    last = await ledger.grant("key", key_id, 100)
    id_ = await settled(ledger, key_id, 50, 30)

    for amount, expected in (
        (-5, [(f"budget_{budget}", -5), (f"grant_{last}", -5)]),
        (-10, [(f"budget_{budget}", -10), (f"grant_{first}", -5), (f"grant_{last}", -5)]),
    ):
        answer, _ = await admin.adjustments.adjust(adjust(amount, reservation_id=id_), OPERATOR)
        assert expected == [(on.id, on.amount_nano_usd) for on in answer.posted_on]


async def test_a_reservation_is_adjusted_where_it_lay(ledger: Ledger, admin: AdminParts) -> None:
    org, _, key_id = await ledger.new_path()
    await ledger.budget("org", org, 1000, "month")
    await ledger.budget("key", key_id, 100, "minute", unit="requests")
    first = await ledger.grant("key", key_id, 20, ends_in=timedelta(days=1))
    last = await ledger.grant("key", key_id, 100)
    id_ = await settled(ledger, key_id, 50, 30)
    assert ((20, 0, 0, 0), (10, 0, 0, 0)) == (
        await ledger.credit(first),
        await ledger.credit(last),
    )
    await ledger.advance(timedelta(days=40))  # another month: the hold belongs to its own

    await admin.adjustments.adjust(adjust(35, reservation_id=id_), OPERATOR)
    assert ((20, 0, 0, 0), (45, 0, 0, 0)) == (
        await ledger.credit(first),
        await ledger.credit(last),
    )
    answer, _ = await admin.adjustments.adjust(adjust(-50, reservation_id=id_), OPERATOR)
    entry = answer.entry
    assert ((15, 0, 0, 0), (0, 0, 0, 0)) == (await ledger.credit(first), await ledger.credit(last))
    assert (0, 0, 0) == await ledger.balances("org", org, "month")
    (row,) = await ledger.fetch(
        "SELECT b.posted, r.adjusted FROM reservations r"
        " JOIN buckets b ON b.id = ANY (r.bucket_ids) WHERE r.id = $1 AND b.unit = 'nano_usd'",
        id_,
    )
    assert (15, -15) == tuple(row)
    assert (id_, -50, "openai", f"key_{key_id}") == (
        entry.reservation_id,
        entry.posted_nano_usd,
        entry.provider,
        entry.key_id,
    )
    below = adjust(-16, reservation_id=id_)
    expected = "FAILED_PRECONDITION ADJUSTMENT_BELOW_ZERO"
    assert expected == await fails(admin.adjustments.adjust(below, OPERATOR))


async def test_only_what_was_resolved_is_adjusted(ledger: Ledger, admin: AdminParts) -> None:
    key_id = await ledger.new_key(100)
    refused, early = ledger.id(), ledger.id()
    assert "BUDGET_EXCEEDED" == told(await ledger.one(reserve(refused, key_id, 101)))
    assert "ok" == told(await ledger.one(void(early)))
    abandoned = await expired(ledger, key_id, "paid")
    await ledger.one(reserve(ledger.id(), key_id, 1))  # meets it
    cases = [
        (await held(ledger, key_id, "paid"), "FAILED_PRECONDITION RESERVATION_HELD"),
        (abandoned, "FAILED_PRECONDITION RESERVATION_IN_SUSPENSE"),
        (refused, "FAILED_PRECONDITION RESERVATION_REFUSED"),
        (early, "FAILED_PRECONDITION RESERVATION_VOIDED"),
        (ledger.id(), "NOT_FOUND RESERVATION_UNKNOWN"),
    ]
    before = await snapshot(ledger)
    for id_, reason in cases:
        request = adjust(5, reservation_id=id_)
        assert reason == await fails(admin.adjustments.adjust(request, OPERATOR))
    assert before == await snapshot(ledger)


async def test_faulty_adjustments_are_refused(ledger: Ledger, admin: AdminParts) -> None:
    org_id, _, key_id = await new_path(ledger)
    both = adjust(1, account_id=org_id, reservation_id=uuid7())
    before = await snapshot(ledger)
    cases = [
        (adjust(0, account_id=key_id), "INVALID_ARGUMENT AMOUNT_ZERO"),
        (adjust(10**15 + 1, account_id=key_id), "INVALID_ARGUMENT AMOUNT_TOO_LARGE"),
        (adjust(-(2**63), account_id=key_id), "INVALID_ARGUMENT AMOUNT_TOO_LARGE"),
        (adjust(1), "INVALID_ARGUMENT ADJUSTMENT_TARGET_INVALID"),
        (both, "INVALID_ARGUMENT ADJUSTMENT_TARGET_INVALID"),
        (adjust(1, reservation_id="x"), "INVALID_ARGUMENT RESERVATION_ID_INVALID"),
        (
            adjust(1, account_id=key_id, adjustment_key=""),
            "INVALID_ARGUMENT ADJUSTMENT_KEY_INVALID",
        ),
        (adjust(1, account_id="key_99999999"), "NOT_FOUND KEY_UNKNOWN"),
        (adjust(1, account_id=key_id), "FAILED_PRECONDITION BUDGET_MISSING"),
    ]
    for request, reason in cases:
        assert reason == await fails(admin.adjustments.adjust(request, OPERATOR)), request
    assert before == await snapshot(ledger)


@pytest.mark.parametrize("target", ["reservation_id", "account_id"])
async def test_what_was_posted_is_given_back_once(
    ledger: Ledger, admin: AdminParts, target: str
) -> None:
    key_id = await ledger.new_key(1000)
    id_ = await settled(ledger, key_id, 50, 30)
    given = {target: id_ if target == "reservation_id" else f"key_{key_id}"}

    async def give_back() -> str:
        try:
            await admin.adjustments.adjust(adjust(-20, **given), OPERATOR)
        except errors.PenstockError as error:
            return error.reason
        return "ok"

    for _ in range(5):
        reasons = await asyncio.gather(*(give_back() for _ in range(8)))

        assert ["ADJUSTMENT_BELOW_ZERO"] * 7 + ["ok"] == sorted(reasons)
        assert (10, 0, 0) == await ledger.balances("key", key_id)
        await admin.adjustments.adjust(adjust(20, **given), OPERATOR)


async def test_an_adjustment_that_passes_a_threshold_warns_once(
    ledger: Ledger, admin: AdminParts
) -> None:
    _, _, key_id = await ledger.new_path()
    budget = await ledger.budget("key", key_id, 100, soft_percents=(50, 80))

    for amount in (49, 1, -10, 20):
        await admin.adjustments.adjust(adjust(amount, account_id=f"key_{key_id}"), OPERATOR)

    alerts = await ledger.fetch(
        "SELECT kind, detail->'percent' AS percent, detail->'spent_nano_usd' AS spent FROM alerts"
        " WHERE account_id = $1 AND (detail->>'budget_id')::bigint = $2",
        key_id,
        budget,
    )
    assert [("budget_threshold", "50", "50")] == [tuple(row) for row in alerts]


async def test_adjustments_and_attempts_at_once_lose_nothing(
    ledger: Ledger, admin: AdminParts
) -> None:
    org, team, key_id = await ledger.new_path()
    for kind, number in (("org", org), ("team", team), ("key", key_id)):
        await ledger.budget(kind, number, None)
    await ledger.grant("org", org, 10_000)
    id_ = await settled(ledger, key_id, 50, 30)

    async def attempt() -> None:
        await settled(ledger, key_id, 7, 3)

    await asyncio.gather(
        *(attempt() for _ in range(20)),
        *(
            admin.adjustments.adjust(adjust(1, account_id=f"key_{key_id}"), OPERATOR)
            for _ in range(10)
        ),
        *(admin.adjustments.adjust(adjust(2, reservation_id=id_), OPERATOR) for _ in range(10)),
    )

    for kind, number in (("org", org), ("team", team), ("key", key_id)):
        assert (30 + 60 + 10 + 20, 0, 0) == await ledger.balances(kind, number)


async def test_an_adjustment_gives_up_where_somebody_keeps_the_rows(
    ledger: Ledger, admin: AdminParts
) -> None:
    key_id = await ledger.new_key(1000)
    id_ = await settled(ledger, key_id, 50, 30)
    before = await snapshot(ledger)
    request = adjust(5, reservation_id=id_)

    async with ledger.database.connection() as connection, connection.transaction():
        await connection.execute(
            "SELECT FROM buckets b JOIN reservations r ON b.id = ANY (r.bucket_ids)"
            " WHERE r.id = $1 FOR UPDATE OF b",
            id_,
        )
        expected = "UNAVAILABLE LEDGER_BUSY"
        assert expected == await fails(admin.adjustments.adjust(request, OPERATOR))
    assert before == await snapshot(ledger)
    answer, _ = await admin.adjustments.adjust(request, OPERATOR)
    assert 5 == answer.entry.posted_nano_usd


async def test_what_is_in_suspense_is_resolved_with_who_and_why(
    ledger: Ledger, admin: AdminParts
) -> None:
    key_id = await ledger.new_key(100)
    id_ = await expired(ledger, key_id, "paid")
    await ledger.one(reserve(ledger.id(), key_id, 1))  # meets it
    assert (0, 1, 40) == await ledger.balances("key", key_id)
    request = quota_pb2.SettleRequest(reservation_id=id_, amount_nano_usd=25, outcome="OPERATOR")

    await admin.adjustments.resolve(request, TRY)
    assert (0, 1, 40) == await ledger.balances("key", key_id)
    first = await admin.adjustments.resolve(request, OPERATOR)
    assert first == await admin.adjustments.resolve(request, OPERATOR)

    assert (25, 15, True) == (first.posted_nano_usd, first.released_nano_usd, first.late)
    assert (25, 1, 0) == await ledger.balances("key", key_id)
    *_, last = await configured(ledger, key_id)
    assert ("resolve_suspense", id_, "expired") == (
        last["what"],
        last["after"]["reservation_id"],
        last["before"]["state"],
    )
    assert 1 == sum(
        change["what"] == "resolve_suspense" for change in await configured(ledger, key_id)
    )
    unknown = quota_pb2.SettleRequest(reservation_id=ledger.id(), outcome="OPERATOR")
    expected = "NOT_FOUND RESERVATION_UNKNOWN"
    assert expected == await fails(admin.adjustments.resolve(unknown, OPERATOR))
