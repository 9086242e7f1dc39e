"""Keys for operators."""

from collections.abc import Callable, Sequence
from typing import Any

from penstock.quota import admin_wire
from penstock.quota.account import KeyPolicy, new_secret
from penstock.quota.admin.shapes import NAME_LENGTH_MAX
from penstock.quota.checks import Faults
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.changes import Change
from penstock.quota.v1 import admin_pb2

ALLOWED_MODELS_MAX = 256
OVERLAP_SECONDS_MAX = 2_592_000
"""30 days: two texts of a key that are valid for longer are two keys."""


class KeysAdmin:
    """Checks what an operator asks of keys, and answers it. Only here a key's text is ever told."""

    def __init__(self, accounts: AccountStore, secret: Callable[[], str] = new_secret) -> None:
        self._accounts = accounts
        self._secret = secret

    async def create(
        self, request: admin_pb2.CreateKeyRequest, change: Change
    ) -> admin_pb2.CreateKeyResponse:
        faults = Faults()
        team_id = faults.account("team_id", request.team_id, "team")
        name = faults.text("name", request.name, length_min=1, length_max=NAME_LENGTH_MAX)
        _check_models(faults, request.allowed_models)
        expires_at = None
        if request.HasField("expires_at"):
            expires_at = faults.instant("expires_at", request.expires_at)
        faults.check()
        policy = KeyPolicy(
            allowed_models=tuple(request.allowed_models),
            local_only=request.local_only,
            fail_open_local=request.fail_open_local,
            expires_at=expires_at,
        )
        secret = self._secret()
        key = await self._accounts.create_key(change, team_id, name, policy, secret)
        return admin_pb2.CreateKeyResponse(key=admin_wire.key(key), secret=_told(secret, change))

    async def rotate(
        self, request: admin_pb2.RotateKeyRequest, change: Change
    ) -> admin_pb2.CreateKeyResponse:
        faults = Faults()
        key_id = faults.account("key_id", request.key_id, "key")
        overlap = faults.integer(
            "overlap_seconds", request.overlap_seconds, low=0, high=OVERLAP_SECONDS_MAX
        )
        faults.check()
        secret = self._secret()
        key, before = await self._accounts.rotate_key(change, key_id, secret, overlap)
        return admin_pb2.CreateKeyResponse(
            key=admin_wire.key(key),
            secret=_told(secret, change),
            before=[admin_wire.key_text(text) for text in before],
        )

    async def update(self, request: admin_pb2.UpdateKeyRequest, change: Change) -> admin_pb2.Key:
        faults = Faults()
        key_id = faults.account("key_id", request.key_id, "key")
        policy: dict[str, Any] = {}
        name = None
        if request.HasField("name"):
            name = faults.text("name", request.name, length_min=1, length_max=NAME_LENGTH_MAX)
        if request.HasField("allowed_models"):
            _check_models(faults, request.allowed_models.patterns)
            policy["allowed_models"] = tuple(request.allowed_models.patterns)
        if request.HasField("local_only"):
            policy["local_only"] = request.local_only
        if request.HasField("fail_open_local"):
            policy["fail_open_local"] = request.fail_open_local
        if request.HasField("expires_at"):
            policy["expires_at"] = faults.instant("expires_at", request.expires_at)
            if request.never_expires:
                faults.add("expires_at", "EXPIRES_AT_INVALID", "goes not with never_expires")
        elif request.never_expires:
            policy["expires_at"] = None
        if name is None and not policy:
            faults.add("key", "UPDATE_EMPTY", "takes at least one field to change")
        faults.check()
        return admin_wire.key(await self._accounts.update_key(change, key_id, name=name, **policy))

    async def revoke(self, request: admin_pb2.RevokeKeyRequest, change: Change) -> admin_pb2.Key:
        faults = Faults()
        key_id = faults.account("key_id", request.key_id, "key")
        faults.check()
        return admin_wire.key(await self._accounts.revoke_key(change, key_id))

    async def list(self, request: admin_pb2.ListKeysRequest) -> admin_pb2.ListKeysResponse:
        faults = Faults()
        team_id = faults.account("team_id", request.team_id, "team") if request.team_id else None
        faults.check()
        keys = await self._accounts.list_keys(team_id)
        return admin_pb2.ListKeysResponse(keys=[admin_wire.key(k) for k in keys])


def _check_models(faults: Faults, models: Sequence[str]) -> None:
    if len(models) > ALLOWED_MODELS_MAX:
        faults.add(
            "allowed_models", "ALLOWED_MODELS_INVALID", f"takes at most {ALLOWED_MODELS_MAX}"
        )
    for i, model in enumerate(models[:ALLOWED_MODELS_MAX]):
        faults.text(f"allowed_models[{i}]", model, length_min=1, length_max=NAME_LENGTH_MAX)


def _told(secret: str, change: Change) -> str:
    """The text of a key that was not made is of no use to anybody."""
    return "" if change.dry_run else secret
