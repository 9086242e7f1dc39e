"""A reservation is its key's alone: another's settle, void or extension changes nothing."""

from datetime import timedelta
from itertools import count

import grpc
import pytest
from google.protobuf.message import Message

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.core.status import from_rpc_error
from penstock.quota.account import format_id
from penstock.quota.ledger import Answer
from penstock.quota.v1 import quota_pb2
from support.ledger import BY_TEST, Ledger, extend, held, reserve, settle, told, void
from support.quota_process import SERVICE, QuotaProcess, new_name, reason_of, reserve_request

Requests = dict[str, Message]


def _requests(reservation_id: str, key_id: str) -> Requests:
    named = {"reservation_id": reservation_id, "key_id": key_id}
    return {
        "Extend": quota_pb2.ExtendRequest(**named, amount_nano_usd=60, ttl_ms=60_000),
        "Void": quota_pb2.VoidRequest(**named, reason="TEST"),
        "Settle": quota_pb2.SettleRequest(**named, amount_nano_usd=25, outcome="ok"),
    }


async def _refusals_unary(quota: QuotaProcess, requests: Requests) -> list[errors.PenstockError]:
    found = []
    for name, request in requests.items():
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await getattr(quota.quota, name)(request, metadata=SERVICE)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        found.append(from_rpc_error(raised.value))
    return found


async def _refusals_batched(quota: QuotaProcess, requests: Requests) -> list[errors.PenstockError]:
    call = quota.quota.Batch(metadata=SERVICE)
    numbers = count(1)
    operations = [
        quota_pb2.Operation(operation_id=next(numbers), **{name.lower(): request})
        for name, request in requests.items()
    ]
    await call.write(quota_pb2.BatchRequest(operations=operations))
    await call.done_writing()
    results = [r async for response in call for r in response.results]
    assert [grpc.StatusCode.PERMISSION_DENIED.value[0]] * 3 == [r.error.code for r in results]
    return [
        errors.PermissionDenied(
            r.error.message, reason=r.error.reason, metadata=dict(r.error.metadata)
        )
        for r in results
    ]


@pytest.mark.parametrize("refusals_of", [_refusals_unary, _refusals_batched])
async def test_what_another_key_holds_cannot_be_settled_voided_or_extended(
    quota: QuotaProcess, refusals_of
) -> None:
    owner = (await quota.new_key(100, name=new_name())).key
    other = (await quota.new_key(100, name=new_name())).key
    hold = reserve_request(uuid7(), owner.id, 40)
    await quota.quota.Reserve(hold, metadata=SERVICE)
    before = await _entries(quota, owner.id)

    refusals = await refusals_of(quota, _requests(hold.reservation_id, other.id))

    assert ["RESERVATION_NOT_YOURS"] * 3 == [refusal.reason for refusal in refusals]
    for refusal in refusals:
        # Who asked, and nothing of whose it is.
        assert other.id == refusal.metadata["key_id"]
        text = f"{refusal.message} {refusal.metadata}".replace(other.id, "")
        assert not [id_ for id_ in (owner.id, owner.team_id, owner.org_id) if id_ in text]
    assert (0, 40, 0) == await quota.balances(owner.id)
    assert (0, 0, 0) == await quota.balances(other.id)
    assert before == await _entries(quota, owner.id)

    right = _requests(hold.reservation_id, owner.id)
    await quota.quota.Extend(right["Extend"], metadata=SERVICE)
    settled = await quota.quota.Settle(right["Settle"], metadata=SERVICE)
    assert (25, 35) == (settled.posted_nano_usd, settled.released_nano_usd)
    assert (25, 0, 0) == await quota.balances(owner.id)
    # Nor does the other learn what it came to: a repeat is not answered to everybody.
    again = _requests(hold.reservation_id, other.id)["Settle"]
    assert "PERMISSION_DENIED RESERVATION_NOT_YOURS" == await reason_of(
        quota.quota.Settle(again, metadata=SERVICE)
    )


@pytest.mark.parametrize("key_id", ["", "team_1", "key_01", "key_-1"])
async def test_an_operation_that_does_not_say_whose_it_is_names_the_field(
    quota: QuotaProcess, key_id: str
) -> None:
    owner = (await quota.new_key(100, name=new_name())).key
    hold = reserve_request(uuid7(), owner.id, 40)
    await quota.quota.Reserve(hold, metadata=SERVICE)
    for name, request in _requests(hold.reservation_id, key_id).items():
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await getattr(quota.quota, name)(request, metadata=SERVICE)
        told_ = from_rpc_error(raised.value)
        assert (grpc.StatusCode.INVALID_ARGUMENT, "KEY_ID_INVALID", ["key_id"]) == (
            raised.value.code(), told_.reason, [v.field for v in told_.violations],
        )  # fmt: skip
    assert (0, 40, 0) == await quota.balances(owner.id)


@pytest.mark.parametrize("pool", ["local", "paid"])
async def test_an_abandoned_hold_is_its_keys_too(ledger: Ledger, pool: str) -> None:
    owner, other = await ledger.new_key(100), await ledger.new_key(100)
    id_ = await held(ledger, owner, pool)
    await ledger.advance(timedelta(minutes=2))
    theirs = settle(id_, 25, key_id=other)
    assert "RESERVATION_NOT_YOURS" == told(await ledger.one(theirs))
    assert "ok" == told(await ledger.one(settle(id_, 25, key_id=owner)))
    assert (25, 0, 0) == await ledger.balances("key", owner)
    assert (await ledger.audit()).ok


async def test_one_that_is_not_theirs_does_not_hold_up_its_batch(ledger: Ledger) -> None:
    owner, other = await ledger.new_key(100), await ledger.new_key(100)
    first, second = await held(ledger, owner, "paid"), await held(ledger, owner, "paid")
    outcomes = await ledger.apply(
        settle(first, 10, key_id=other),
        settle(second, 20, key_id=owner),
        reserve(ledger.id(), other, 30),
    )
    assert ["RESERVATION_NOT_YOURS", "ok", "ok"] == [told(outcome) for outcome in outcomes]
    assert (20, 40, 0) == await ledger.balances("key", owner)


async def test_a_void_that_comes_first_is_of_whoever_sent_it(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(void(id_, key_id=key_id)))
    assert "RESERVATION_VOIDED" == told(await ledger.one(reserve(id_, key_id)))


ENDED = {
    "KEY_REVOKED": errors.Unauthenticated,
    "KEY_EXPIRED": errors.Unauthenticated,
    "ACCOUNT_SUSPENDED": errors.PermissionDenied,
}


@pytest.mark.parametrize("reason", ENDED)
async def test_a_key_that_may_not_begin_may_not_grow_and_still_settles(
    ledger: Ledger, reason: str
) -> None:
    org_id, _, key_id = await ledger.new_path()
    await ledger.budget("key", key_id, 100)
    id_ = await held(ledger, key_id, "paid")
    if reason == "KEY_REVOKED":
        await ledger.accounts.revoke_key(BY_TEST, key_id)
    elif reason == "KEY_EXPIRED":
        ends_at = ledger.now + timedelta(seconds=10)
        await ledger.accounts.update_key(BY_TEST, key_id, name=None, expires_at=ends_at)
        await ledger.advance(timedelta(seconds=10))
    else:
        await ledger.accounts.update_account(BY_TEST, "org", org_id, suspended=True)

    refused = await ledger.one(extend(id_, 60, key_id=key_id))

    assert isinstance(refused, ENDED[reason])
    assert (reason, format_id("key", key_id)) == (refused.reason, refused.metadata["key_id"])
    assert (0, 40, 0) == await ledger.balances("key", key_id)
    assert isinstance(await ledger.one(settle(id_, 25, key_id=key_id)), Answer)
    assert (25, 0, 0) == await ledger.balances("key", key_id)


async def _entries(quota: QuotaProcess, key_id: str) -> list[str]:
    request = quota_pb2.ListEntriesRequest(account_id=key_id, page_size=100)
    listed = await quota.quota.ListEntries(request, metadata=SERVICE)
    return [entry.id for entry in listed.entries]
