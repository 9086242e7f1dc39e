"""Organisations, teams and pools for operators."""

from penstock.quota import admin_wire
from penstock.quota.account import AccountKind
from penstock.quota.admin.shapes import any_account, plain_name
from penstock.quota.checks import Faults
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.changes import Change
from penstock.quota.store.pool_store import PoolStore
from penstock.quota.v1 import admin_pb2

POOL_PROVIDERS_MAX = 64

_KINDS: dict[int, AccountKind] = {
    admin_pb2.Account.KIND_ORG: "org",
    admin_pb2.Account.KIND_TEAM: "team",
}


class AccountsAdmin:
    """Checks what an operator asks of accounts and pools, and answers it."""

    def __init__(self, accounts: AccountStore, pools: PoolStore) -> None:
        self._accounts = accounts
        self._pools = pools

    async def create(
        self, request: admin_pb2.CreateAccountRequest, change: Change
    ) -> admin_pb2.Account:
        faults = Faults()
        kind = _KINDS.get(request.kind)
        if kind is None:
            faults.add("kind", "KIND_INVALID", "takes KIND_ORG or KIND_TEAM")
        plain_name(faults, "name", request.name)
        org_id = None
        if kind == "team":
            org_id = faults.account("org_id", request.org_id, "org")
        elif request.org_id:
            faults.add("org_id", "ORG_ID_INVALID", "belongs to a team only")
        faults.check()
        assert kind is not None
        account = await self._accounts.create_account(
            change,
            kind,
            request.name,
            org_id,
            prepaid=request.prepaid,
            commercial=request.commercial,
        )
        return admin_wire.account(account)

    async def update(
        self, request: admin_pb2.UpdateAccountRequest, change: Change
    ) -> admin_pb2.Account:
        faults = Faults()
        kind, account_id = any_account(faults, "account_id", request.account_id, "org", "team")
        given = {
            field: getattr(request, field)
            for field in ("suspended", "prepaid", "commercial")
            if request.HasField(field)
        }
        if not given:
            faults.add("account", "UPDATE_EMPTY", "takes suspended, prepaid or commercial")
        faults.check()
        account = await self._accounts.update_account(change, kind, account_id, **given)
        return admin_wire.account(account)

    async def set_suspended(
        self, request: admin_pb2.SetSuspendedRequest, change: Change
    ) -> admin_pb2.Account:
        faults = Faults()
        kind, account_id = any_account(faults, "account_id", request.account_id, "org", "team")
        faults.check()
        account = await self._accounts.update_account(
            change, kind, account_id, suspended=request.suspended
        )
        return admin_wire.account(account)

    async def list(self) -> admin_pb2.ListAccountsResponse:
        accounts = await self._accounts.list_accounts()
        return admin_pb2.ListAccountsResponse(accounts=[admin_wire.account(a) for a in accounts])

    async def set_pool(self, request: admin_pb2.SetPoolRequest, change: Change) -> admin_pb2.Pool:
        faults = Faults()
        plain_name(faults, "name", request.name)
        providers = list(request.providers)
        if not 1 <= len(providers) <= POOL_PROVIDERS_MAX:
            faults.add(
                "providers", "PROVIDERS_INVALID", f"takes 1 to {POOL_PROVIDERS_MAX} providers"
            )
        elif len(set(providers)) < len(providers):
            faults.add("providers", "PROVIDERS_INVALID", "names one of them twice")
        for i, provider in enumerate(providers[:POOL_PROVIDERS_MAX]):
            faults.text(f"providers[{i}]", provider, length_min=1, length_max=128)
        faults.check()
        pool = await self._pools.set_pool(change, request.name, providers, prepaid=request.prepaid)
        return admin_wire.pool(pool)

    async def close_pool(
        self, request: admin_pb2.ClosePoolRequest, change: Change
    ) -> admin_pb2.Pool:
        faults = Faults()
        pool_id = faults.account("pool_id", request.pool_id, "pool")
        faults.check()
        return admin_wire.pool(await self._pools.close_pool(change, pool_id))

    async def list_pools(self) -> admin_pb2.ListPoolsResponse:
        pools = await self._pools.list_pools()
        return admin_pb2.ListPoolsResponse(pools=[admin_wire.pool(pool) for pool in pools])
