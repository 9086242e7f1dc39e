"""The first organisation, team and key, so that the first request needs no reading.

Idempotent: what is there stays as it is, also a budget that was changed since.
"""

import asyncio
from dataclasses import dataclass, field

from penstock.cli.admin import Admin
from penstock.client import Client
from penstock.core.errors import PenstockError
from penstock.core.money import NANO_PER_USD
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import Principal

NAME = "default"
BUDGET_NANO_USD = 5 * NANO_PER_USD
"""A calendar month's, of the ready-made key: enough to try everything, too little to hurt."""

MODELS_SECONDS = 30.0
"""The router hears of a replica within two seconds of its being ready; more is a fault."""
MODELS_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ReadyKey:
    """The key that `up` prints."""

    id: str
    secret: str = field(repr=False)
    is_new: bool = False


async def ensure_key(admin: Admin, *, kept_id: str, kept_secret: str) -> ReadyKey:
    """The kept key while it is active, else a new one with its monthly budget.

    Raises:
        PenstockError: the ledger refuses or is away.
    """
    org = await _ensure_account(admin, admin_pb2.Account.KIND_ORG)
    team = await _ensure_account(admin, admin_pb2.Account.KIND_TEAM, org_id=org)
    if kept_id and kept_secret:
        listed = await admin.call("ListKeys", admin_pb2.ListKeysRequest(team_id=team))
        assert isinstance(listed, admin_pb2.ListKeysResponse)
        for key in listed.keys:
            if key.id == kept_id and key.state == Principal.STATE_ACTIVE:
                return ReadyKey(kept_id, kept_secret)
    created = await admin.call(
        "CreateKey", admin_pb2.CreateKeyRequest(team_id=team, name=NAME, fail_open_local=False)
    )
    assert isinstance(created, admin_pb2.CreateKeyResponse)
    await admin.call(
        "SetBudget",
        admin_pb2.SetBudgetRequest(
            account_id=created.key.id,
            window=admin_pb2.Budget.WINDOW_MONTH,
            time_zone="UTC",
            limit_nano_usd=BUDGET_NANO_USD,
        ),
    )
    return ReadyKey(created.key.id, created.secret, is_new=True)


async def _ensure_account(
    admin: Admin, kind: "admin_pb2.Account.Kind.ValueType", *, org_id: str = ""
) -> str:
    listed = await admin.call("ListAccounts", admin_pb2.ListAccountsRequest())
    assert isinstance(listed, admin_pb2.ListAccountsResponse)
    for account in listed.accounts:
        if (account.kind, account.name, account.org_id) == (kind, NAME, org_id):
            return account.id
    created = await admin.call(
        "CreateAccount", admin_pb2.CreateAccountRequest(kind=kind, name=NAME, org_id=org_id)
    )
    assert isinstance(created, admin_pb2.Account)
    return created.id


async def await_models(address: str, secret: str, models: set[str]) -> bool:
    """Until the router knows a ready replica of each (`local/<name>`); False: not in time.

    A replica can serve a moment before the router hears of it, and the very first request would
    spill.
    """
    try:
        async with asyncio.timeout(MODELS_SECONDS), Client(address, secret) as client:
            while models - {m.id for m in await client.models() if m.ready_replicas}:  # noqa: ASYNC110 - it must be asked
                await asyncio.sleep(MODELS_POLL_SECONDS)
    except (TimeoutError, PenstockError):
        return False
    return True
