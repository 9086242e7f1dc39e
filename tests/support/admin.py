"""The operator's calls over a test's ledger, without a port."""

import json
from collections.abc import Awaitable
from typing import Any, cast

import pytest

from penstock.core import errors
from penstock.quota.admin_service import AdminParts, AlertsCalls, ReconcileCalls
from penstock.quota.balances import Balances
from penstock.quota.store.balance_store import BalanceStore
from penstock.quota.store.changes import Change
from penstock.quota.v1 import admin_pb2
from support.ledger import Ledger

__all__ = ["admin", "configured", "fails", "new_path", "snapshot"]

OPERATOR = Change(actor="ops@example.org", reason="ticket 7")
TRY = Change(actor="ops@example.org", reason="ticket 7", dry_run=True)

TABLES = (
    "accounts",
    "api_keys",
    "key_secrets",
    "pool_providers",
    "budgets",
    "grants",
    "buckets",
    "reservations",
    "adjustments",
    "entries",
)


@pytest.fixture
def admin(ledger: Ledger) -> AdminParts:
    """Alerts and reconciliation have tests of their own."""
    return AdminParts.over(
        ledger.database,
        Balances(BalanceStore(ledger.database)),
        cast("AlertsCalls", None),
        cast("ReconcileCalls", None),
    )


async def new_path(ledger: Ledger) -> tuple[str, str, str]:
    """Ids, as text, of a new organisation, its team and its key."""
    org, team, key = await ledger.new_path()
    return f"org_{org}", f"team_{team}", f"key_{key}"


async def fails(call: Awaitable[Any]) -> str:
    """Code and reason of a call that must be refused."""
    with pytest.raises(errors.PenstockError) as raised:
        await call
    assert raised.value.message
    if isinstance(raised.value, errors.InvalidRequest) and raised.value.violations:
        assert all(v.field and v.description for v in raised.value.violations)
    return f"{raised.value.code.name} {raised.value.reason}"


async def snapshot(ledger: Ledger) -> dict[str, str]:
    """Every row of the ledger, as a digest a table."""
    digests = {}
    for table in TABLES:
        (row,) = await ledger.fetch(
            f"SELECT md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '')) FROM {table} t"
        )
        digests[table] = row[0]
    return digests


async def configured(ledger: Ledger, account_id: int) -> list[dict[str, Any]]:
    """What was changed on the account, oldest first: `what`, `before` and `after`."""
    rows = await ledger.entries_of("configure", account_id)
    return [json.loads(row["detail"]) for row in reversed(rows)]


def usd(**fields: Any) -> admin_pb2.SetBudgetRequest:
    """A month's budget of 100, but for what is given."""
    defaults = {"window": admin_pb2.Budget.WINDOW_MONTH}
    if "limit_nano_usd" not in fields and "unlimited" not in fields:
        fields["limit_nano_usd"] = 100
    return admin_pb2.SetBudgetRequest(**(defaults | fields))
