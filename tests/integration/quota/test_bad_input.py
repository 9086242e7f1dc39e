"""Bad input: every fault has a reason of its own, names its field, and changes nothing."""

import json

import grpc
import pytest

from penstock.core.ids import uuid7
from penstock.core.status import from_rpc_error
from penstock.quota.v1 import admin_pb2, quota_pb2
from support.quota_process import (
    ADMIN,
    SERVICE,
    QuotaProcess,
    new_name,
    one_nano,
    reason_of,
)

BAD_RESERVES = [
    ("reservation_id", "", "RESERVATION_ID_INVALID"),
    ("reservation_id", "0b0cbc34-3e54-4d5b-9ae4-7b2d5a2fa5ba", "RESERVATION_ID_INVALID"),
    ("reservation_id", "01A20D60-6FE6-7310-8E54-B7C11791BA12", "RESERVATION_ID_INVALID"),
    ("request_id", "", "REQUEST_ID_INVALID"),
    ("request_id", "x" * 129, "REQUEST_ID_INVALID"),
    ("request_id", "a\0b", "REQUEST_ID_INVALID"),
    ("attempt", 0, "ATTEMPT_INVALID"),
    ("attempt", -1, "ATTEMPT_INVALID"),
    ("key_id", "team_1", "KEY_ID_INVALID"),
    ("key_id", "key_01", "KEY_ID_INVALID"),
    ("key_id", "key_99999999999999999999", "KEY_ID_INVALID"),
    ("pool", quota_pb2.POOL_KIND_UNSPECIFIED, "POOL_INVALID"),
    ("pool", 7, "POOL_INVALID"),
    ("provider", "", "PROVIDER_INVALID"),
    ("model", "", "MODEL_INVALID"),
    ("model", "m" * 257, "MODEL_INVALID"),
    ("amount_nano_usd", -1, "AMOUNT_NEGATIVE"),
    ("amount_nano_usd", 10**15 + 1, "AMOUNT_TOO_LARGE"),
    ("ttl_ms", 0, "TTL_MS_INVALID"),
    ("ttl_ms", 86_400_001, "TTL_MS_INVALID"),
    ("user", "u" * 257, "USER_INVALID"),
]


async def test_a_faulty_reserve_names_its_field_and_changes_nothing(quota: QuotaProcess) -> None:
    key_id = (await quota.new_key(100, name=new_name())).key.id
    for field, value, reason in BAD_RESERVES:
        request = one_nano(key_id)
        setattr(request, field, value)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await quota.quota.Reserve(request, metadata=SERVICE)
        told = from_rpc_error(raised.value)
        assert (grpc.StatusCode.INVALID_ARGUMENT, reason) == (raised.value.code(), told.reason)
        assert [field] == [violation.field for violation in told.violations]
    tags = one_nano(key_id, tags={f"t{n}": "" for n in range(33)})
    assert "TAGS_INVALID" in await reason_of(quota.quota.Reserve(tags, metadata=SERVICE))
    nobody = one_nano("key_999999999999")
    assert "NOT_FOUND KEY_UNKNOWN" == await reason_of(quota.quota.Reserve(nobody, metadata=SERVICE))
    assert await quota.balances(key_id) == (0, 0, 0)


async def test_every_fault_of_a_request_is_told_at_once(quota: QuotaProcess) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await quota.quota.Reserve(quota_pb2.ReserveRequest(amount_nano_usd=-1), metadata=SERVICE)
    fields = {violation.field for violation in from_rpc_error(raised.value).violations}
    assert {"reservation_id", "key_id", "amount_nano_usd", "ttl_ms", "pool", "model"} <= fields


async def test_faulty_settles_and_voids_are_refused(quota: QuotaProcess) -> None:
    settle = quota.quota.Settle
    id_ = uuid7()
    cases = [
        (quota_pb2.SettleRequest(reservation_id="x"), "RESERVATION_ID_INVALID"),
        (quota_pb2.SettleRequest(reservation_id=id_, amount_nano_usd=-1), "AMOUNT_NEGATIVE"),
        (quota_pb2.SettleRequest(reservation_id=id_, amount_nano_usd=2**62), "AMOUNT_TOO_LARGE"),
        (
            quota_pb2.SettleRequest(reservation_id=id_, usage={"prompt_tokens": -1}),
            "USAGE_PROMPT_TOKENS_INVALID",
        ),
        (quota_pb2.SettleRequest(reservation_id=id_), "KEY_ID_INVALID"),
        (quota_pb2.SettleRequest(reservation_id=id_, key_id="key_1"), "RESERVATION_UNKNOWN"),
    ]
    for request, reason in cases:
        assert reason in await reason_of(settle(request, metadata=SERVICE))
    void = quota_pb2.VoidRequest(reservation_id="x")
    assert "RESERVATION_ID_INVALID" in await reason_of(quota.quota.Void(void, metadata=SERVICE))
    hash_ = quota_pb2.GetPrincipalRequest(key_hash=b"short")
    assert "KEY_HASH_INVALID" in await reason_of(quota.quota.GetPrincipal(hash_, metadata=SERVICE))
    hash_ = quota_pb2.GetPrincipalRequest(key_hash=bytes(32))
    assert "NOT_FOUND KEY_UNKNOWN" == await reason_of(
        quota.quota.GetPrincipal(hash_, metadata=SERVICE)
    )


async def test_who_and_why_come_with_the_call_and_a_try_changes_nothing(
    quota: QuotaProcess,
) -> None:
    key = (await quota.new_key(100, name=new_name())).key
    request = admin_pb2.SetBudgetRequest(
        account_id=key.id, window=admin_pb2.Budget.WINDOW_DAY, limit_nano_usd=1
    )
    who = (*ADMIN, ("x-penstock-actor", "ops@example.org"), ("x-penstock-reason", "ticket 7"))

    tried = await quota.admin.SetBudget(request, metadata=(*who, ("x-penstock-dry-run", "1")))
    listed = await quota.admin.ListBudgets(
        admin_pb2.ListBudgetsRequest(account_id=key.id), metadata=ADMIN
    )
    assert ("day", ["total"]) == (tried.name, [budget.name for budget in listed.budgets])
    for header, value in (("x-penstock-actor", "a" * 129), ("x-penstock-dry-run", "yes")):
        reason = await reason_of(
            quota.admin.SetBudget(request, metadata=((*ADMIN, (header, value))))
        )
        assert reason in {"INVALID_ARGUMENT ACTOR_INVALID", "INVALID_ARGUMENT DRY_RUN_INVALID"}
    await quota.admin.SetBudget(request, metadata=who)

    wanted = quota_pb2.ListEntriesRequest(account_id=key.id, operation="configure", page_size=2)
    for metadata, stub in ((ADMIN, quota.admin), (SERVICE, quota.quota)):
        last, before = (await stub.ListEntries(wanted, metadata=metadata)).entries
        assert ("ops@example.org", "ticket 7", "admin") == (last.actor, last.reason, before.actor)
        assert "day" == json.loads(last.detail_json)["after"]["name"]


async def test_a_fault_of_an_operators_call_names_its_field(quota: QuotaProcess) -> None:
    request = admin_pb2.SetBudgetRequest(account_id="key_x", name="No", limit_nano_usd=-1)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await quota.admin.SetBudget(request, metadata=ADMIN)
    told = from_rpc_error(raised.value)
    assert "ACCOUNT_ID_INVALID" == told.reason
    assert ["account_id", "name", "limit_nano_usd"] == [v.field for v in told.violations]
