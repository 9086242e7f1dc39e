"""AdminService: proto ⇄ domain, for operators, on its own port with its own token."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc

from penstock.core.clock import Clock
from penstock.core.money import INT64_MAX
from penstock.quota import admin_wire, wire
from penstock.quota.account import ACCOUNT_NAME, AccountKind, KeyPolicy, WindowKind, new_secret
from penstock.quota.batcher import Batcher
from penstock.quota.checks import Faults
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.report_store import ReportStore
from penstock.quota.v1 import admin_pb2, admin_pb2_grpc, quota_pb2

ENTRIES_PAGE_DEFAULT = 100
ENTRIES_PAGE_MAX = 1_000
ALLOWED_MODELS_MAX = 256
NAME_LENGTH_MAX = 128

Context = grpc.aio.ServicerContext[Any, Any]

_KINDS: dict[int, AccountKind] = {
    admin_pb2.Account.KIND_ORG: "org",
    admin_pb2.Account.KIND_TEAM: "team",
}
_WINDOWS: dict[int, WindowKind] = {
    admin_pb2.Budget.WINDOW_TOTAL: "total",
    admin_pb2.Budget.WINDOW_MONTH: "month",
}


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The operators' side of the ledger."""

    def __init__(
        self,
        accounts: AccountStore,
        reports: ReportStore,
        batcher: Batcher,
        clock: Clock,
        secret: Callable[[], str] = new_secret,
    ) -> None:
        self._accounts = accounts
        self._reports = reports
        self._batcher = batcher
        self._clock = clock
        self._secret = secret

    async def CreateAccount(
        self, request: admin_pb2.CreateAccountRequest, _context: Context
    ) -> admin_pb2.Account:
        faults = Faults()
        kind = _KINDS.get(request.kind)
        if kind is None:
            faults.add("kind", "KIND_INVALID", "takes KIND_ORG or KIND_TEAM")
        if not ACCOUNT_NAME.fullmatch(request.name):
            faults.add("name", "NAME_INVALID", "takes 1 to 64 of a-z, 0-9 and -")
        org_id = None
        if kind == "team":
            org_id = faults.account("org_id", request.org_id, "org")
        elif request.org_id:
            faults.add("org_id", "ORG_ID_INVALID", "belongs to a team only")
        faults.check()
        assert kind is not None
        account = await self._accounts.create_account(kind, request.name, org_id)
        return admin_wire.account(account)

    async def ListAccounts(
        self, _request: admin_pb2.ListAccountsRequest, _context: Context
    ) -> admin_pb2.ListAccountsResponse:
        accounts = await self._accounts.list_accounts()
        return admin_pb2.ListAccountsResponse(accounts=[admin_wire.account(a) for a in accounts])

    async def SetSuspended(
        self, request: admin_pb2.SetSuspendedRequest, _context: Context
    ) -> admin_pb2.Account:
        faults = Faults()
        account_id = faults.account("account_id", request.account_id, "org", "team")
        faults.check()
        account = await self._accounts.set_suspended(
            admin_wire.kind_of(request.account_id), account_id, suspended=request.suspended
        )
        return admin_wire.account(account)

    async def CreateKey(
        self, request: admin_pb2.CreateKeyRequest, _context: Context
    ) -> admin_pb2.CreateKeyResponse:
        faults = Faults()
        team_id = faults.account("team_id", request.team_id, "team")
        name = faults.text("name", request.name, length_min=1, length_max=NAME_LENGTH_MAX)
        if len(request.allowed_models) > ALLOWED_MODELS_MAX:
            faults.add(
                "allowed_models", "ALLOWED_MODELS_INVALID", f"takes at most {ALLOWED_MODELS_MAX}"
            )
        for i, model in enumerate(request.allowed_models[:ALLOWED_MODELS_MAX]):
            faults.text(f"allowed_models[{i}]", model, length_min=1, length_max=NAME_LENGTH_MAX)
        expires_at = None
        if request.HasField("expires_at"):
            now = datetime.fromtimestamp(self._clock.unix_seconds(), UTC)
            expires_at = faults.instant("expires_at", request.expires_at)
            if expires_at is not None and expires_at <= now:
                faults.add("expires_at", "EXPIRES_AT_INVALID", "lies in the past")
        faults.check()
        policy = KeyPolicy(
            allowed_models=tuple(request.allowed_models),
            local_only=request.local_only,
            fail_open_local=request.fail_open_local,
            expires_at=expires_at,
        )
        secret = self._secret()
        key = await self._accounts.create_key(team_id, name, policy, secret)
        return admin_pb2.CreateKeyResponse(key=admin_wire.key(key), secret=secret)

    async def ListKeys(
        self, request: admin_pb2.ListKeysRequest, _context: Context
    ) -> admin_pb2.ListKeysResponse:
        faults = Faults()
        team_id = faults.account("team_id", request.team_id, "team") if request.team_id else None
        faults.check()
        keys = await self._accounts.list_keys(team_id)
        return admin_pb2.ListKeysResponse(keys=[admin_wire.key(k) for k in keys])

    async def RevokeKey(
        self, request: admin_pb2.RevokeKeyRequest, _context: Context
    ) -> admin_pb2.Key:
        faults = Faults()
        key_id = faults.account("key_id", request.key_id, "key")
        faults.check()
        return admin_wire.key(await self._accounts.revoke_key(key_id))

    async def SetBudget(
        self, request: admin_pb2.SetBudgetRequest, _context: Context
    ) -> admin_pb2.Budget:
        faults = Faults()
        account_id = faults.account("account_id", request.account_id, "org", "team", "key")
        window = _WINDOWS.get(request.window)
        if window is None:
            faults.add("window", "WINDOW_INVALID", "takes WINDOW_TOTAL or WINDOW_MONTH")
        name = faults.text("name", request.name, length_max=NAME_LENGTH_MAX)
        time_zone = faults.text("time_zone", request.time_zone, length_max=64)
        limit: int | None = None
        given = request.WhichOneof("limit")
        if given == "limit_nano_usd":
            limit = faults.amount("limit_nano_usd", request.limit_nano_usd, high=INT64_MAX)
        elif given is None or not request.unlimited:
            faults.add("limit", "LIMIT_MISSING", "takes limit_nano_usd (0 is a limit) or unlimited")
        faults.check()
        assert window is not None
        budget = await self._accounts.set_budget(
            (admin_wire.kind_of(request.account_id), account_id),
            window,
            name=name or f"{request.account_id} {window}",
            time_zone=time_zone or "UTC",
            limit_nano_usd=limit,
        )
        return admin_wire.budget(budget)

    async def ListBudgets(
        self, request: admin_pb2.ListBudgetsRequest, _context: Context
    ) -> admin_pb2.ListBudgetsResponse:
        account_id = _optional_account(request.account_id)
        budgets = await self._accounts.list_budgets(account_id)
        return admin_pb2.ListBudgetsResponse(budgets=[admin_wire.budget(b) for b in budgets])

    async def ListEntries(
        self, request: admin_pb2.ListEntriesRequest, _context: Context
    ) -> admin_pb2.ListEntriesResponse:
        faults = Faults()
        key_id = faults.account("key_id", request.key_id, "key") if request.key_id else None
        size = request.page_size or ENTRIES_PAGE_DEFAULT
        faults.integer("page_size", size, low=1, high=ENTRIES_PAGE_MAX)
        before_id = None
        if request.page_token:
            if request.page_token.isascii() and request.page_token.isdigit():
                before_id = min(int(request.page_token[:19]), INT64_MAX)
            else:
                faults.add("page_token", "PAGE_TOKEN_INVALID", "takes the last answer's token")
        faults.text("request_id", request.request_id, length_max=NAME_LENGTH_MAX)
        faults.check()
        rows = await self._reports.entries(
            request_id=request.request_id or None,
            key_id=key_id,
            before_id=before_id,
            rows_max=size + 1,
        )
        entries = [admin_wire.entry(row) for row in rows[:size]]
        more = str(entries[-1].id) if len(rows) > size else ""
        return admin_pb2.ListEntriesResponse(entries=entries, next_page_token=more)

    async def GetUsage(
        self, request: admin_pb2.GetUsageRequest, _context: Context
    ) -> admin_pb2.GetUsageResponse:
        faults = Faults()
        since = faults.instant("since", request.since) if request.HasField("since") else None
        until = faults.instant("until", request.until) if request.HasField("until") else None
        faults.check()
        account_id = _optional_account(request.account_id)
        rows = await self._reports.usage(since=since, until=until, account_id=account_id)
        return admin_pb2.GetUsageResponse(rows=[admin_wire.usage_row(row) for row in rows])

    async def ResolveSuspense(
        self, request: quota_pb2.SettleRequest, _context: Context
    ) -> quota_pb2.SettleResponse:
        return wire.settle_response(await self._batcher.apply(wire.parse_settle(request)))


def _optional_account(text: str) -> int | None:
    faults = Faults()
    account_id = faults.account("account_id", text, "org", "team", "key") if text else None
    faults.check()
    return account_id
