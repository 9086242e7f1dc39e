"""Budgets and rate limits for operators."""

from collections.abc import Sequence
from itertools import pairwise

from penstock.core.money import INT64_MAX
from penstock.quota import admin_wire
from penstock.quota.account import BudgetUnit, WindowKind
from penstock.quota.admin.shapes import WINDOWS, any_account, optional_account, plain_name, scope
from penstock.quota.budget import SOFT_PERCENTS_DEFAULT, BudgetWish
from penstock.quota.checks import Faults
from penstock.quota.store.budget_store import BudgetStore
from penstock.quota.store.changes import Change
from penstock.quota.v1 import admin_pb2

SOFT_PERCENTS_MAX = 8
RATE_LIMIT_MAX = 10**15
TIME_ZONE_LENGTH_MAX = 64

_UNITS: dict[int, BudgetUnit] = {
    admin_pb2.RateLimit.UNIT_REQUESTS: "requests",
    admin_pb2.RateLimit.UNIT_TOKENS: "tokens",
    admin_pb2.RateLimit.UNIT_IN_FLIGHT: "in_flight",
}


class BudgetsAdmin:
    """Checks what an operator asks of budgets and limits, and answers it."""

    def __init__(self, budgets: BudgetStore) -> None:
        self._budgets = budgets

    async def set(self, request: admin_pb2.SetBudgetRequest, change: Change) -> admin_pb2.Budget:
        faults = Faults()
        kind, account_id = any_account(faults, "account_id", request.account_id)
        window = _window(faults, request.window)
        name = plain_name(faults, "name", request.name) if request.name else window
        if not name and request.window == admin_pb2.Budget.WINDOW_UNSPECIFIED:
            faults.add("window", "WINDOW_MISSING", "takes a window, or the name of a budget")
        limit: int | None = None
        given = request.WhichOneof("limit")
        if given == "limit_nano_usd":
            limit = faults.amount("limit_nano_usd", request.limit_nano_usd, high=INT64_MAX)
        elif given is None or not request.unlimited:
            faults.add("limit", "LIMIT_MISSING", "takes limit_nano_usd (0 is a limit) or unlimited")
        wish = BudgetWish(
            account_kind=kind,
            account_id=account_id,
            unit="nano_usd",
            window=window,
            name=name or "",
            time_zone=_time_zone(faults, request.time_zone),
            limit=limit,
            scope=scope(faults, request.scope) if request.HasField("scope") else None,
            soft_percents=_soft_percents(faults, request.soft_percents),
        )
        faults.check()
        before, after = await self._budgets.set_budget(change, wish)
        return admin_wire.budget(after, before)

    async def close(
        self, request: admin_pb2.CloseBudgetRequest, change: Change
    ) -> admin_pb2.Budget:
        faults = Faults()
        budget_id = faults.numbered("budget_id", request.budget_id, "budget")
        faults.check()
        return admin_wire.budget(await self._budgets.close_budget(change, budget_id, money=True))

    async def list(self, request: admin_pb2.ListBudgetsRequest) -> admin_pb2.ListBudgetsResponse:
        account = optional_account(request.account_id)
        budgets = await self._budgets.list_budgets(account, money=True)
        return admin_pb2.ListBudgetsResponse(budgets=[admin_wire.budget(b) for b in budgets])

    async def set_rate(
        self, request: admin_pb2.SetRateLimitRequest, change: Change
    ) -> admin_pb2.RateLimit:
        faults = Faults()
        kind, account_id = any_account(faults, "account_id", request.account_id)
        unit = _UNITS.get(request.unit)
        if unit is None:
            faults.add("unit", "UNIT_INVALID", "takes UNIT_REQUESTS, UNIT_TOKENS or UNIT_IN_FLIGHT")
        window = _rate_window(faults, unit, request.window)
        if request.name:
            name = plain_name(faults, "name", request.name)
        else:
            name = f"{unit or ''}-{window}".replace("_", "-")
            if window is None and request.window == admin_pb2.Budget.WINDOW_UNSPECIFIED:
                faults.add("window", "WINDOW_MISSING", "takes a window, or the name of a limit")
        wish = BudgetWish(
            account_kind=kind,
            account_id=account_id,
            unit=unit or "requests",
            window=window,
            name=name,
            time_zone=_time_zone(faults, request.time_zone),
            limit=faults.integer("limit", request.limit, low=0, high=RATE_LIMIT_MAX),
            scope=scope(faults, request.scope) if request.HasField("scope") else None,
        )
        faults.check()
        before, after = await self._budgets.set_budget(change, wish)
        return admin_wire.rate_limit(after, before)

    async def close_rate(
        self, request: admin_pb2.CloseRateLimitRequest, change: Change
    ) -> admin_pb2.RateLimit:
        faults = Faults()
        limit_id = faults.numbered("limit_id", request.limit_id, "limit")
        faults.check()
        closed = await self._budgets.close_budget(change, limit_id, money=False)
        return admin_wire.rate_limit(closed)

    async def list_rates(
        self, request: admin_pb2.ListRateLimitsRequest
    ) -> admin_pb2.ListRateLimitsResponse:
        account = optional_account(request.account_id)
        limits = await self._budgets.list_budgets(account, money=False)
        return admin_pb2.ListRateLimitsResponse(limits=[admin_wire.rate_limit(x) for x in limits])


def _window(faults: Faults, given: int) -> WindowKind | None:
    """None: as it is."""
    window = WINDOWS.get(given)
    if window is None and given != admin_pb2.Budget.WINDOW_UNSPECIFIED:
        faults.add("window", "WINDOW_INVALID", "takes WINDOW_MINUTE to WINDOW_TOTAL")
    return window


def _rate_window(faults: Faults, unit: BudgetUnit | None, given: int) -> WindowKind | None:
    window = _window(faults, given)
    if unit == "in_flight":
        if window not in {None, "total"}:
            faults.add("window", "WINDOW_INVALID", "of UNIT_IN_FLIGHT is WINDOW_TOTAL")
        return "total"
    if window == "total":
        faults.add("window", "WINDOW_INVALID", "of requests and tokens is minute to month")
    return window


def _time_zone(faults: Faults, given: str) -> str | None:
    faults.text("time_zone", given, length_max=TIME_ZONE_LENGTH_MAX)
    return given or None


def _soft_percents(faults: Faults, given: Sequence[int]) -> tuple[int, ...]:
    if not given:
        return SOFT_PERCENTS_DEFAULT
    ascending = all(a < b for a, b in pairwise(given))
    if len(given) > SOFT_PERCENTS_MAX or not ascending or given[0] < 1 or given[-1] > 100:
        faults.add(
            "soft_percents",
            "SOFT_PERCENTS_INVALID",
            f"takes at most {SOFT_PERCENTS_MAX} of 1 to 100, ascending",
        )
        return ()
    return tuple(given)
