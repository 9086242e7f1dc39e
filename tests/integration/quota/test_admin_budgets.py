"""Budgets and rate limits as operators set them."""

import asyncio
from datetime import UTC, datetime

import pytest

from penstock.quota.account import parse_id
from penstock.quota.admin_service import AdminParts
from penstock.quota.store.budget_store import BUDGETS_MAX
from penstock.quota.v1 import admin_pb2
from support.admin import OPERATOR, TRY, configured, fails, new_path, snapshot, usd
from support.ledger import Ledger, reserve, settle, told

B = admin_pb2.Budget
R = admin_pb2.RateLimit


@pytest.mark.parametrize(
    ("window", "name", "resets_at"),
    [
        (B.WINDOW_MINUTE, "minute", datetime(2026, 11, 24, 12, 1, tzinfo=UTC)),
        (B.WINDOW_HOUR, "hour", datetime(2026, 11, 24, 13, tzinfo=UTC)),
        (B.WINDOW_DAY, "day", datetime(2026, 11, 24, 15, tzinfo=UTC)),
        (B.WINDOW_WEEK, "week", datetime(2026, 11, 29, 15, tzinfo=UTC)),
        (B.WINDOW_MONTH, "month", datetime(2026, 11, 30, 15, tzinfo=UTC)),
        (B.WINDOW_TOTAL, "total", None),
    ],
)
async def test_every_window_is_set_and_resets_in_its_zone(
    ledger: Ledger, admin: AdminParts, window: B.Window.ValueType, name: str, resets_at: datetime
) -> None:
    org_id, _, _ = await new_path(ledger)
    budget = await admin.budgets.set(
        usd(account_id=org_id, window=window, time_zone="Asia/Tokyo"), OPERATOR
    )

    assert (name, window, 100, [50, 80, 100]) == (
        budget.name,
        budget.window,
        budget.limit_nano_usd,
        list(budget.soft_percents),
    )
    told_reset = budget.resets_at.ToDatetime(UTC) if budget.HasField("resets_at") else None
    assert resets_at == told_reset
    listed = await admin.budgets.list(admin_pb2.ListBudgetsRequest(account_id=org_id))
    assert [budget] == list(listed.budgets)


async def test_a_budget_is_changed_by_its_name_and_keeps_what_is_absent(
    ledger: Ledger, admin: AdminParts
) -> None:
    org_id, _, _ = await new_path(ledger)
    scope = admin_pb2.Scope(providers=["open_ai*"], models=["100%"], tags={"team": "x"})
    first = await admin.budgets.set(
        usd(account_id=org_id, name="a", time_zone="Asia/Tokyo", scope=scope), OPERATOR
    )
    changed = await admin.budgets.set(
        usd(account_id=org_id, name="a", window=0, unlimited=True, soft_percents=[10, 90]), OPERATOR
    )

    assert first.id == changed.id
    assert (True, "Asia/Tokyo", scope, B.WINDOW_MONTH, [10, 90]) == (
        changed.unlimited,
        changed.time_zone,
        changed.scope,
        changed.window,
        list(changed.soft_percents),
    )
    number = parse_id(org_id, "org")
    assert number is not None
    (_, made, updated) = await configured(ledger, number)
    assert ("set_budget", "set_budget") == (made["what"], updated["what"])
    assert (100, None) == (updated["before"]["limit"], updated["after"]["limit"])
    everything = await admin.budgets.set(
        usd(account_id=org_id, name="a", scope=admin_pb2.Scope()), OPERATOR
    )
    assert admin_pb2.Scope() == everything.scope


async def test_the_answer_of_a_change_has_what_was_before(
    ledger: Ledger, admin: AdminParts
) -> None:
    org_id, _, _ = await new_path(ledger)
    made = await admin.budgets.set(
        usd(account_id=org_id, name="a", time_zone="Asia/Tokyo"), OPERATOR
    )
    assert not made.HasField("before")
    for change in (TRY, OPERATOR):
        changed = await admin.budgets.set(
            usd(account_id=org_id, name="a", limit_nano_usd=7, time_zone="UTC"), change
        )
        assert (7, "UTC", made) == (changed.limit_nano_usd, changed.time_zone, changed.before)
    closed = await admin.budgets.close(admin_pb2.CloseBudgetRequest(budget_id=made.id), OPERATOR)
    opened = await admin.budgets.set(usd(account_id=org_id, name="a"), OPERATOR)
    assert (False, closed) == (opened.closed, opened.before)


async def test_the_answer_of_a_change_of_a_limit_has_what_was_before_and_its_zone(
    ledger: Ledger, admin: AdminParts
) -> None:
    org_id, _, _ = await new_path(ledger)
    request = admin_pb2.SetRateLimitRequest(
        account_id=org_id, unit=R.UNIT_TOKENS, window=B.WINDOW_DAY, limit=5, time_zone="Asia/Tokyo"
    )
    made = await admin.budgets.set_rate(request, OPERATOR)
    assert ("Asia/Tokyo", False) == (made.time_zone, made.HasField("before"))
    request.limit, request.time_zone = 6, ""
    changed = await admin.budgets.set_rate(request, OPERATOR)
    assert (6, "Asia/Tokyo", made) == (changed.limit, changed.time_zone, changed.before)


async def test_of_changes_at_once_each_is_told_what_it_changed(
    ledger: Ledger, admin: AdminParts
) -> None:
    org_id, _, _ = await new_path(ledger)
    requests = [usd(account_id=org_id, name="a", limit_nano_usd=n) for n in range(1, 9)]

    made = await asyncio.gather(*(admin.budgets.set(one, OPERATOR) for one in requests))

    (first,) = [one for one in made if not one.HasField("before")]
    follows = {one.before.limit_nano_usd: one.limit_nano_usd for one in made if one != first}
    chain = [first.limit_nano_usd]
    while chain[-1] in follows:
        chain.append(follows[chain[-1]])
    assert sorted(chain) == [one.limit_nano_usd for one in requests]


async def test_a_budget_of_a_scope_counts_only_what_it_names(
    ledger: Ledger, admin: AdminParts
) -> None:
    _, _, key_id = await new_path(ledger)
    number = int(key_id[4:])
    await ledger.budget("key", number, 1000)
    scope = admin_pb2.Scope(models=["gpt_4*"])
    await admin.budgets.set(
        usd(account_id=key_id, name="small", limit_nano_usd=0, scope=scope), OPERATOR
    )

    outcome = await ledger.one(reserve(ledger.id(), number, model="gpt_4-mini"))
    assert "BUDGET_EXCEEDED" == told(outcome)
    # `_` of a name is itself, and not any character.
    assert "ok" == told(await ledger.one(reserve(ledger.id(), number, model="gptX4-mini")))


async def test_unit_and_window_of_a_budget_are_for_ever(ledger: Ledger, admin: AdminParts) -> None:
    org_id, _, _ = await new_path(ledger)
    await admin.budgets.set(usd(account_id=org_id, name="a"), OPERATOR)
    before = await snapshot(ledger)

    other = usd(account_id=org_id, name="a", window=B.WINDOW_DAY)
    assert "FAILED_PRECONDITION BUDGET_WINDOW_FIXED" == await fails(
        admin.budgets.set(other, OPERATOR)
    )
    limit = admin_pb2.SetRateLimitRequest(
        account_id=org_id, name="a", unit=R.UNIT_TOKENS, window=B.WINDOW_MONTH, limit=1
    )
    assert "FAILED_PRECONDITION BUDGET_UNIT_FIXED" == await fails(
        admin.budgets.set_rate(limit, OPERATOR)
    )
    assert before == await snapshot(ledger)


async def test_a_closed_budget_limits_nothing_and_keeps_its_balances(
    ledger: Ledger, admin: AdminParts
) -> None:
    _, _, key_id = await new_path(ledger)
    number = int(key_id[4:])
    await ledger.budget("key", number, 1000)
    tight = await admin.budgets.set(
        usd(account_id=key_id, name="tight", limit_nano_usd=10), OPERATOR
    )
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(reserve(id_, number, 10)))
    await ledger.one(settle(id_, 10))
    close = admin_pb2.CloseBudgetRequest(budget_id=tight.id)

    await admin.budgets.close(close, TRY)
    assert "BUDGET_EXCEEDED" == told(await ledger.one(reserve(ledger.id(), number, 10)))
    closed = await admin.budgets.close(close, OPERATOR)
    assert (True, 10) == (closed.closed, closed.posted_nano_usd)
    assert closed == await admin.budgets.close(close, OPERATOR)
    assert "ok" == told(await ledger.one(reserve(ledger.id(), number, 10)))
    opened = await admin.budgets.set(
        usd(account_id=key_id, name="tight", limit_nano_usd=10), OPERATOR
    )
    assert (tight.id, False, 10) == (opened.id, opened.closed, opened.posted_nano_usd)


async def test_a_limit_is_no_budget_and_the_other_way_round(
    ledger: Ledger, admin: AdminParts
) -> None:
    org_id, _, _ = await new_path(ledger)
    budget = await admin.budgets.set(usd(account_id=org_id), OPERATOR)
    limit = await admin.budgets.set_rate(
        admin_pb2.SetRateLimitRequest(account_id=org_id, unit=R.UNIT_IN_FLIGHT, limit=3), OPERATOR
    )

    assert ("in-flight-total", B.WINDOW_TOTAL, 3) == (limit.name, limit.window, limit.limit)
    number = budget.id.split("_")[1]
    wrong = admin_pb2.CloseRateLimitRequest(limit_id=f"limit_{number}")
    assert "NOT_FOUND LIMIT_UNKNOWN" == await fails(admin.budgets.close_rate(wrong, OPERATOR))
    number = limit.id.split("_")[1]
    other = admin_pb2.CloseBudgetRequest(budget_id=f"budget_{number}")
    assert "NOT_FOUND BUDGET_UNKNOWN" == await fails(admin.budgets.close(other, OPERATOR))
    rates = await admin.budgets.list_rates(admin_pb2.ListRateLimitsRequest(account_id=org_id))
    assert [limit] == list(rates.limits)
    budgets = await admin.budgets.list(admin_pb2.ListBudgetsRequest(account_id=org_id))
    assert [budget] == list(budgets.budgets)


async def test_an_account_has_few_open_budgets(ledger: Ledger, admin: AdminParts) -> None:
    org_id, _, _ = await new_path(ledger)
    for n in range(BUDGETS_MAX):
        last = await admin.budgets.set(usd(account_id=org_id, name=f"b{n}"), OPERATOR)
    more = usd(account_id=org_id, name="more")

    assert "FAILED_PRECONDITION BUDGETS_TOO_MANY" == await fails(admin.budgets.set(more, OPERATOR))
    await admin.budgets.close(admin_pb2.CloseBudgetRequest(budget_id=last.id), OPERATOR)
    assert "more" == (await admin.budgets.set(more, OPERATOR)).name
