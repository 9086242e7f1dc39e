"""The widest lists on a terminal of 80 columns: they fit, ids are whole, money is not hidden."""

import io
from collections.abc import Callable

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from penstock.cli.account_tables import budgets_table, grants_table, limits_table
from penstock.cli.balance_tables import balance_views
from penstock.cli.entry_table import entries_table
from penstock.cli.ledger_tables import usage_table
from penstock.cli.route_tables import models_table, plan_table
from penstock.cli.tables import Listed, fitted
from penstock.quota.v1 import admin_pb2, quota_pb2
from penstock.router.v1 import router_pb2

COLUMNS = 80
AT = Timestamp(seconds=1_795_000_000, nanos=123_456_000)
REQUEST = "req_0192a3b4c5d67e8f9a0b1c2d3e4f5a6b"
RESERVATION = "0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5a6b"
LONG = "continuous-integration-of-everything"
PAID_MODEL = "gpt-4o-mini-2024-07-18"
MONEY = {"posted_nano_usd": 1_234_567_891, "held_nano_usd": 2 * 10**9}
SUSPENSE = 87_654_321


def drawn(table: object) -> tuple[str, list[str]]:
    assert isinstance(table, Listed)
    found, dropped = fitted(table, Console(file=io.StringIO(), width=1_000), COLUMNS)
    console = Console(file=io.StringIO(), width=1_000)
    with console.capture() as said:
        console.print(found)
    text = said.get()
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= COLUMNS
    return text, dropped


def test_entries_keep_the_id_of_their_request() -> None:
    settled = quota_pb2.Entry(
        id=123_456, at=AT, operation="late_settle", account_id="key_3", request_id=REQUEST,
        attempt=2, reservation_id=RESERVATION, provider="openai", model="gpt-4o-mini-2024-07-18",
        posted_nano_usd=1_234_567_891, held_delta_nano_usd=-(10**9), prompt_tokens=1_000,
        completion_tokens=200, outcome="ok", late=True, user="ada", tags={"job": "nightly"},
    )  # fmt: skip
    text, dropped = drawn(entries_table([settled], []))
    assert f"{REQUEST} #2" in text
    assert "1.234567891" in text
    assert ".123456" not in text
    assert "reservation" == dropped[0]
    assert "suspense" not in dropped


def test_where_few_entries_are_of_requests_whose_they_are_and_why_is_kept() -> None:
    changed = quota_pb2.Entry(
        id=123_456, at=AT, operation="configure", account_id="key_3", actor="ada",
        reason="a new year", detail_json='{"what": "set_budget"}',
    )  # fmt: skip
    settled = quota_pb2.Entry(
        id=123_457, at=AT, operation="settle", account_id="key_3", request_id=REQUEST, attempt=2,
        reservation_id=RESERVATION, provider="openai", model="gpt-4o-mini-2024-07-18",
        posted_nano_usd=1_234_567_891, held_delta_nano_usd=-(10**9), outcome="ok",
    )  # fmt: skip
    text, dropped = drawn(entries_table([settled, changed], []))
    assert "request" in dropped
    assert not {"of", "what"} & set(dropped)
    assert "key_3" in text
    text, _ = drawn(entries_table([settled, settled, changed], []))
    assert f"{REQUEST} #2" in text


def test_use_is_told_by_key_in_usd() -> None:
    row = admin_pb2.UsageRow(
        key_id="key_3", provider="openai", model="gpt-4o-mini-2024-07-18", attempts=123_456,
        prompt_tokens=123_456_789, completion_tokens=98_765_432, posted_nano_usd=123_456_789_012,
        estimated_nano_usd=12_345_678_901,
    )  # fmt: skip
    text, dropped = drawn(usage_table([row], []))
    assert "123.456789012" in text
    assert "12.345678901" in text
    assert "nano-USD" == dropped[0]


def budget_balances() -> Table:
    one = quota_pb2.BudgetBalance(
        name="month-openai", account_id="key_3", window="month", limit_nano_usd=12_345_678_901_234,
        suspense_nano_usd=SUSPENSE, remaining_nano_usd=9 * 10**12, soft_percents=[50, 80, 100],
        providers=["openai"], resets_at=AT, **MONEY,
    )  # fmt: skip
    return table_of(quota_pb2.Balance(budgets=[one]))


def grant_balances() -> Table:
    one = quota_pb2.GrantBalance(
        name=LONG, grant_id="grant_3", account_id="key_3", amount_nano_usd=2_500_123_456_789,
        suspense_nano_usd=SUSPENSE, lapsed_nano_usd=5 * 10**8, remaining_nano_usd=10**12,
        starts_at=AT, expires_at=AT, **MONEY,
    )  # fmt: skip
    return table_of(quota_pb2.Balance(grants=[one]))


def table_of(balance: quota_pb2.Balance) -> Table:
    (table,) = balance_views(balance, [])
    assert isinstance(table, Table)
    return table


def budgets() -> Table:
    one = admin_pb2.Budget(
        id="budget_3", name="month-openai", account_id="key_3", time_zone="Europe/Berlin",
        window=admin_pb2.Budget.WINDOW_MONTH, limit_nano_usd=12_345_678_901_234,
        suspense_nano_usd=SUSPENSE, soft_percents=[50, 80, 100], resets_at=AT, **MONEY,
    )  # fmt: skip
    return budgets_table([one], [])


def limit(name: str, *, closed: bool) -> admin_pb2.RateLimit:
    return admin_pb2.RateLimit(
        id="limit_3", name=name, account_id="key_3", unit=admin_pb2.RateLimit.UNIT_TOKENS,
        window=admin_pb2.Budget.WINDOW_MINUTE, limit=10**15, used=10**14, resets_at=AT,
        closed=closed, scope=admin_pb2.Scope(providers=["openai"], models=["gpt-4o-mini*"]),
    )  # fmt: skip


def budget(name: str, *, closed: bool) -> admin_pb2.Budget:
    return admin_pb2.Budget(
        id="budget_3", name=name, account_id="key_3", time_zone="America/Argentina/Buenos_Aires",
        window=admin_pb2.Budget.WINDOW_MONTH, limit_nano_usd=12_345_678_901_234,
        suspense_nano_usd=SUSPENSE, soft_percents=[50, 80, 100], closed=closed, **MONEY,
    )  # fmt: skip


def grants() -> Table:
    one = admin_pb2.Grant(
        id="grant_3", name=LONG, grant_key="welcome", account_id="key_3",
        amount_nano_usd=2_500_123_456_789, suspense_nano_usd=SUSPENSE, lapsed_nano_usd=5 * 10**8,
        starts_at=AT, expires_at=AT, **MONEY,
    )  # fmt: skip
    return grants_table([one], [])


@pytest.mark.parametrize("table", [budget_balances, grant_balances, budgets, grants])
def test_money_that_waits_or_lapsed_is_not_hidden(table: Callable[[], Table]) -> None:
    text, dropped = drawn(table())
    assert [] == [name for name in ("held", "suspense", "lapsed") if name in dropped]
    assert "0.087654321" in text


def test_what_is_closed_is_told_so() -> None:
    def tables(*, closed: bool) -> tuple[Table, Table]:
        others = [("old", closed), ("new", False)]
        return (
            budgets_table([budget(f"{name}-{LONG}", closed=c) for name, c in others], []),
            limits_table([limit(f"{name}-{LONG}", closed=c) for name, c in others], []),
        )

    for table in tables(closed=True):
        text, _ = drawn(table)
        assert (1, 1) == (text.count(" closed "), text.count(" open "))
    for table in tables(closed=False):
        text, _ = drawn(table)
        assert "state" not in text


def test_models_keep_their_names_and_prices() -> None:
    model = router_pb2.Model(
        id=f"openai/{PAID_MODEL}", kind=router_pb2.Model.KIND_PAID, context_tokens=1_000_000,
        max_output_tokens=100_000, input_nano_usd_per_mtok=123_456_789_012,
        output_nano_usd_per_mtok=1_234_567_890_123, ready_replicas=3,
    )  # fmt: skip
    alias = router_pb2.Model(
        id="auto", kind=router_pb2.Model.KIND_ALIAS, targets=[f"local/{LONG}", model.id]
    )
    text, dropped = drawn(models_table([alias, model]))
    assert model.id in text
    assert {"123.456789012", "1234.567890123"} <= set(text.split())
    assert "output" == dropped[0]


def test_a_plan_keeps_each_verdict_and_what_it_can_cost() -> None:
    attempts = [
        router_pb2.PlannedAttempt(
            provider="openai-stand-in", model=PAID_MODEL, reason="spill_no_replica",
            cost_bound_nano_usd=1_234_567_890_123, expected_wait_ms=12_345, max_tokens=100_000,
            **verdict,
        )
        for verdict in ({"admitted": True}, {"admitted": False}, {})
    ]  # fmt: skip
    rejected = router_pb2.RejectedTarget(
        provider="openai", model=PAID_MODEL, reason="max_tokens_beyond_model"
    )
    text, _ = drawn(
        plan_table(router_pb2.ExplainRouteResponse(attempts=attempts, rejected=[rejected]))
    )
    assert (1, 1, 1) == tuple(text.count(word) for word in ("admits", "refuses", "unknown"))
    assert 3 == text.count("1234.567890123")


def watched(waits: int, posted: int) -> list[list[str]]:
    """The columns of each table of a watched balance."""
    part = {"posted_nano_usd": posted, "held_nano_usd": waits, "suspense_nano_usd": waits}
    left = 5 * 10**9 - posted - 2 * waits
    balance = quota_pb2.Balance(
        budgets=[
            quota_pb2.BudgetBalance(
                name="month", account_id="key_3", window="month", limit_nano_usd=5 * 10**9,
                remaining_nano_usd=left, soft_percents=[50, 80, 100], resets_at=AT, **part,
            )
        ],
        grants=[
            quota_pb2.GrantBalance(
                name="a start", grant_id="grant_3", account_id="key_3", starts_at=AT,
                amount_nano_usd=5 * 10**9, remaining_nano_usd=left, **part,
            )
        ],
        rates=[
            quota_pb2.RateBalance(
                name="tokens-day", account_id="key_3", unit="tokens", window="day",
                limit=5 * 10**9, used=posted, resets_at=AT,
            )
        ],
    )  # fmt: skip
    columns = []
    for table in balance_views(balance, [], watched=True):
        drawn(table)
        assert isinstance(table, Listed)
        found, _ = fitted(table, Console(file=io.StringIO(), width=1_000), COLUMNS)
        columns.append([str(column.header) for column in found.columns])
    return columns


@pytest.mark.parametrize(
    ("waits", "posted"),
    [(1_234_567, 0), (0, 1_234_567_891), (12_345, 4_987_654_321), (0, 5 * 10**9)],
)
def test_a_watched_balance_keeps_its_columns_whatever_its_figures_become(
    waits: int, posted: int
) -> None:
    assert watched(0, 0) == watched(waits, posted)
