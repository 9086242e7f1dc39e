"""AdminService: one line a call, for operators, on its own port with its own token."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from penstock.core.admin_headers import REPLAYED
from penstock.quota.admin.accounts import AccountsAdmin
from penstock.quota.admin.adjustments import AdjustmentsAdmin
from penstock.quota.admin.budgets import BudgetsAdmin
from penstock.quota.admin.grants import GrantsAdmin
from penstock.quota.admin.keys import KeysAdmin
from penstock.quota.admin.reports import ReportsAdmin
from penstock.quota.admin.shapes import Context, change_of
from penstock.quota.balances import Balances
from penstock.quota.entries import Entries
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.adjust_store import AdjustStore
from penstock.quota.store.budget_store import BudgetStore
from penstock.quota.store.changes import Change
from penstock.quota.store.database import Database
from penstock.quota.store.entry_store import EntryStore
from penstock.quota.store.grant_store import GrantStore
from penstock.quota.store.pool_store import PoolStore
from penstock.quota.store.report_store import ReportStore
from penstock.quota.store.resolve_store import ResolveStore
from penstock.quota.v1 import admin_pb2, admin_pb2_grpc, quota_pb2


class AlertsCalls(Protocol):
    """What operators ask of alerts."""

    async def list_alerts(
        self, request: admin_pb2.ListAlertsRequest
    ) -> admin_pb2.ListAlertsResponse: ...

    async def test_alerts(
        self, request: admin_pb2.TestAlertsRequest, *, dry_run: bool
    ) -> admin_pb2.TestAlertsResponse: ...


class ReconcileCalls(Protocol):
    """Compares a provider's bill with the ledger, and corrects it."""

    def reconcile(
        self, requests: AsyncIterator[admin_pb2.ReconcileRequest], change: Change
    ) -> AsyncIterator[admin_pb2.ReconcileResponse]: ...


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What answers the calls, by topic."""

    accounts: AccountsAdmin
    keys: KeysAdmin
    budgets: BudgetsAdmin
    grants: GrantsAdmin
    adjustments: AdjustmentsAdmin
    reports: ReportsAdmin
    balances: Balances
    entries: Entries
    alerts: AlertsCalls
    reconcile: ReconcileCalls

    @classmethod
    def over(
        cls,
        database: Database,
        balances: Balances,
        alerts: AlertsCalls,
        reconcile: ReconcileCalls,
    ) -> "AdminParts":
        """All over one database."""
        accounts = AccountStore(database)
        return cls(
            accounts=AccountsAdmin(accounts, PoolStore(database)),
            keys=KeysAdmin(accounts),
            budgets=BudgetsAdmin(BudgetStore(database)),
            grants=GrantsAdmin(GrantStore(database)),
            adjustments=AdjustmentsAdmin(AdjustStore(database), ResolveStore(database)),
            reports=ReportsAdmin(ReportStore(database)),
            balances=balances,
            entries=Entries(EntryStore(database)),
            alerts=alerts,
            reconcile=reconcile,
        )


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The operators' side of the ledger."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts

    async def CreateAccount(
        self, request: admin_pb2.CreateAccountRequest, context: Context
    ) -> admin_pb2.Account:
        return await self._parts.accounts.create(request, change_of(context))

    async def UpdateAccount(
        self, request: admin_pb2.UpdateAccountRequest, context: Context
    ) -> admin_pb2.Account:
        return await self._parts.accounts.update(request, change_of(context))

    async def ListAccounts(
        self, _request: admin_pb2.ListAccountsRequest, _context: Context
    ) -> admin_pb2.ListAccountsResponse:
        return await self._parts.accounts.list()

    async def SetSuspended(
        self, request: admin_pb2.SetSuspendedRequest, context: Context
    ) -> admin_pb2.Account:
        return await self._parts.accounts.set_suspended(request, change_of(context))

    async def CreateKey(
        self, request: admin_pb2.CreateKeyRequest, context: Context
    ) -> admin_pb2.CreateKeyResponse:
        return await self._parts.keys.create(request, change_of(context))

    async def ListKeys(
        self, request: admin_pb2.ListKeysRequest, _context: Context
    ) -> admin_pb2.ListKeysResponse:
        return await self._parts.keys.list(request)

    async def RevokeKey(
        self, request: admin_pb2.RevokeKeyRequest, context: Context
    ) -> admin_pb2.Key:
        return await self._parts.keys.revoke(request, change_of(context))

    async def UpdateKey(
        self, request: admin_pb2.UpdateKeyRequest, context: Context
    ) -> admin_pb2.Key:
        return await self._parts.keys.update(request, change_of(context))

    async def RotateKey(
        self, request: admin_pb2.RotateKeyRequest, context: Context
    ) -> admin_pb2.CreateKeyResponse:
        return await self._parts.keys.rotate(request, change_of(context))

    async def SetBudget(
        self, request: admin_pb2.SetBudgetRequest, context: Context
    ) -> admin_pb2.Budget:
        return await self._parts.budgets.set(request, change_of(context))

    async def ListBudgets(
        self, request: admin_pb2.ListBudgetsRequest, _context: Context
    ) -> admin_pb2.ListBudgetsResponse:
        return await self._parts.budgets.list(request)

    async def CloseBudget(
        self, request: admin_pb2.CloseBudgetRequest, context: Context
    ) -> admin_pb2.Budget:
        return await self._parts.budgets.close(request, change_of(context))

    async def SetRateLimit(
        self, request: admin_pb2.SetRateLimitRequest, context: Context
    ) -> admin_pb2.RateLimit:
        return await self._parts.budgets.set_rate(request, change_of(context))

    async def ListRateLimits(
        self, request: admin_pb2.ListRateLimitsRequest, _context: Context
    ) -> admin_pb2.ListRateLimitsResponse:
        return await self._parts.budgets.list_rates(request)

    async def CloseRateLimit(
        self, request: admin_pb2.CloseRateLimitRequest, context: Context
    ) -> admin_pb2.RateLimit:
        return await self._parts.budgets.close_rate(request, change_of(context))

    async def CreateGrant(
        self, request: admin_pb2.CreateGrantRequest, context: Context
    ) -> admin_pb2.Grant:
        grant, is_repeat = await self._parts.grants.create(request, change_of(context))
        _tell_repeat(context, is_repeat=is_repeat)
        return grant

    async def ListGrants(
        self, request: admin_pb2.ListGrantsRequest, _context: Context
    ) -> admin_pb2.ListGrantsResponse:
        return await self._parts.grants.list(request)

    async def EndGrant(
        self, request: admin_pb2.EndGrantRequest, context: Context
    ) -> admin_pb2.Grant:
        return await self._parts.grants.end(request, change_of(context))

    async def SetPool(self, request: admin_pb2.SetPoolRequest, context: Context) -> admin_pb2.Pool:
        return await self._parts.accounts.set_pool(request, change_of(context))

    async def ListPools(
        self, _request: admin_pb2.ListPoolsRequest, _context: Context
    ) -> admin_pb2.ListPoolsResponse:
        return await self._parts.accounts.list_pools()

    async def ClosePool(
        self, request: admin_pb2.ClosePoolRequest, context: Context
    ) -> admin_pb2.Pool:
        return await self._parts.accounts.close_pool(request, change_of(context))

    async def Adjust(
        self, request: admin_pb2.AdjustRequest, context: Context
    ) -> admin_pb2.AdjustResponse:
        answer, is_repeat = await self._parts.adjustments.adjust(request, change_of(context))
        _tell_repeat(context, is_repeat=is_repeat)
        return answer

    async def ResolveSuspense(
        self, request: quota_pb2.SettleRequest, context: Context
    ) -> quota_pb2.SettleResponse:
        return await self._parts.adjustments.resolve(request, change_of(context))

    async def Reconcile(
        self, request_iterator: AsyncIterator[admin_pb2.ReconcileRequest], context: Context
    ) -> AsyncIterator[admin_pb2.ReconcileResponse]:
        async for response in self._parts.reconcile.reconcile(request_iterator, change_of(context)):
            yield response

    async def ListAlerts(
        self, request: admin_pb2.ListAlertsRequest, _context: Context
    ) -> admin_pb2.ListAlertsResponse:
        return await self._parts.alerts.list_alerts(request)

    async def TestAlerts(
        self, request: admin_pb2.TestAlertsRequest, context: Context
    ) -> admin_pb2.TestAlertsResponse:
        dry_run = change_of(context).dry_run
        return await self._parts.alerts.test_alerts(request, dry_run=dry_run)

    async def GetBalance(
        self, request: quota_pb2.GetBalanceRequest, _context: Context
    ) -> quota_pb2.Balance:
        return await self._parts.balances.get(request)

    async def WatchBalance(
        self, request: quota_pb2.WatchBalanceRequest, _context: Context
    ) -> AsyncIterator[quota_pb2.Balance]:
        async for balance in self._parts.balances.watch(request):
            yield balance

    async def ListEntries(
        self, request: quota_pb2.ListEntriesRequest, _context: Context
    ) -> quota_pb2.ListEntriesResponse:
        return await self._parts.entries.list(request)

    async def GetUsage(
        self, request: admin_pb2.GetUsageRequest, _context: Context
    ) -> admin_pb2.GetUsageResponse:
        return await self._parts.reports.usage(request)


def _tell_repeat(context: Context, *, is_repeat: bool) -> None:
    if is_repeat:
        context.set_trailing_metadata(((REPLAYED, "true"),))
