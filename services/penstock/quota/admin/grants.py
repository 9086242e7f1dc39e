"""Grants for operators."""

from penstock.core.admin_headers import REASON_CHARACTERS_MAX
from penstock.quota import admin_wire
from penstock.quota.admin.shapes import (
    NAME_LENGTH_MAX,
    any_account,
    optional_account,
    scope,
)
from penstock.quota.budget import GrantWish
from penstock.quota.checks import Faults
from penstock.quota.store.changes import Change
from penstock.quota.store.grant_store import GrantStore
from penstock.quota.v1 import admin_pb2


class GrantsAdmin:
    """Checks what an operator asks of grants, and answers it."""

    def __init__(self, grants: GrantStore) -> None:
        self._grants = grants

    async def create(
        self, request: admin_pb2.CreateGrantRequest, change: Change
    ) -> tuple[admin_pb2.Grant, bool]:
        """And whether this is a repeat."""
        faults = Faults()
        kind, account_id = any_account(faults, "account_id", request.account_id)
        amount = faults.amount("amount_nano_usd", request.amount_nano_usd)
        if amount == 0:
            faults.add("amount_nano_usd", "AMOUNT_ZERO", "is 0; a grant is of 1 nano-USD or more")
        starts_at = expires_at = None
        if request.HasField("starts_at"):
            starts_at = faults.instant("starts_at", request.starts_at)
        if request.HasField("expires_at"):
            expires_at = faults.instant("expires_at", request.expires_at)
        if starts_at is not None and expires_at is not None and expires_at <= starts_at:
            faults.add("expires_at", "GRANT_ENDS_BEFORE_START", "does not lie after starts_at")
        wish = GrantWish(
            grant_key=faults.text("grant_key", request.grant_key, length_min=1, length_max=128),
            account_kind=kind,
            account_id=account_id,
            name=faults.text("name", request.name, length_min=1, length_max=NAME_LENGTH_MAX),
            reason=faults.text("reason", request.reason, length_max=REASON_CHARACTERS_MAX),
            amount_nano_usd=amount,
            starts_at=starts_at,
            expires_at=expires_at,
            scope=scope(faults, request.scope),
            commercial_use=request.commercial_use,
        )
        faults.check()
        grant, is_repeat = await self._grants.create_grant(change, wish)
        return admin_wire.grant(grant), is_repeat

    async def end(self, request: admin_pb2.EndGrantRequest, change: Change) -> admin_pb2.Grant:
        faults = Faults()
        grant_id = faults.numbered("grant_id", request.grant_id, "grant")
        faults.check()
        return admin_wire.grant(await self._grants.end_grant(change, grant_id))

    async def list(self, request: admin_pb2.ListGrantsRequest) -> admin_pb2.ListGrantsResponse:
        grants = await self._grants.list_grants(optional_account(request.account_id))
        return admin_pb2.ListGrantsResponse(grants=[admin_wire.grant(g) for g in grants])
