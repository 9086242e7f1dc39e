"""A pool is closed: its providers are free, and nothing that is open in it is lost."""

import asyncio

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.quota.admin_service import AdminParts
from penstock.quota.v1 import admin_pb2
from support.admin import OPERATOR, TRY, configured, fails, snapshot
from support.ledger import Ledger, expired, reserve, settle, told, void

IN_USE = "FAILED_PRECONDITION POOL_IN_USE"


def close(pool_id: int) -> admin_pb2.ClosePoolRequest:
    return admin_pb2.ClosePoolRequest(pool_id=f"pool_{pool_id}")


async def test_its_providers_are_free_for_another(ledger: Ledger, admin: AdminParts) -> None:
    pool_id, names = await ledger.pool(providers=2)
    await ledger.budget("pool", pool_id, 5)
    key_id = await ledger.new_key(100)
    assert "BUDGET_EXCEEDED" == told(
        await ledger.one(reserve(ledger.id(), key_id, 6, provider=names[0]))
    )

    closed = await admin.accounts.close_pool(close(pool_id), OPERATOR)

    assert ([], True) == (list(closed.providers), closed.closed)
    assert "ok" == told(await ledger.one(reserve(ledger.id(), key_id, 6, provider=names[0])))
    entry = (await configured(ledger, pool_id))[-1]
    assert ("close_pool", names, []) == (
        entry["what"],
        entry["before"]["providers"],
        entry["after"]["providers"],
    )
    other = admin_pb2.SetPoolRequest(name=f"p-{uuid7()[-12:]}", providers=names)
    assert not (await admin.accounts.set_pool(other, OPERATOR)).closed
    listed = (await admin.accounts.list_pools()).pools
    assert [True] == [pool.closed for pool in listed if pool.id == closed.id]


async def test_again_is_no_fault_and_no_entry(ledger: Ledger, admin: AdminParts) -> None:
    pool_id, _ = await ledger.pool()
    closed = await admin.accounts.close_pool(close(pool_id), OPERATOR)
    before = await snapshot(ledger)
    assert closed == await admin.accounts.close_pool(close(pool_id), OPERATOR)
    assert before == await snapshot(ledger)


async def test_it_opens_again_with_what_it_had(ledger: Ledger, admin: AdminParts) -> None:
    pool_id, names = await ledger.pool(prepaid=True)
    await ledger.grant("pool", pool_id, 7)
    pool = next(p for p in (await admin.accounts.list_pools()).pools if p.id == f"pool_{pool_id}")
    await admin.accounts.close_pool(close(pool_id), OPERATOR)
    again = admin_pb2.SetPoolRequest(name=pool.name, providers=names, prepaid=True)
    assert pool == await admin.accounts.set_pool(again, OPERATOR)
    key_id = await ledger.new_key(None)
    answers = [
        told(await ledger.one(reserve(ledger.id(), key_id, n, provider=names[0]))) for n in (8, 7)
    ]
    assert ["CREDIT_EXHAUSTED", "ok"] == answers


async def test_it_is_refused_while_an_attempt_holds(ledger: Ledger, admin: AdminParts) -> None:
    pool_id, (name,) = await ledger.pool()
    key_id = await ledger.new_key(100)
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(reserve(id_, key_id, 40, provider=name)))
    before = await snapshot(ledger)
    assert IN_USE == await fails(admin.accounts.close_pool(close(pool_id), OPERATOR))
    assert IN_USE == await fails(admin.accounts.close_pool(close(pool_id), TRY))
    assert before == await snapshot(ledger)
    await ledger.one(settle(id_, 30))
    assert (await admin.accounts.close_pool(close(pool_id), OPERATOR)).closed


async def test_it_is_refused_while_something_is_in_suspense(
    ledger: Ledger, admin: AdminParts
) -> None:
    key_id = await ledger.new_key(100)
    pool_id, _ = await ledger.pool()
    await ledger.execute("DELETE FROM pool_providers WHERE provider = 'openai'")
    named = next(p for p in (await admin.accounts.list_pools()).pools if p.id == f"pool_{pool_id}")
    request = admin_pb2.SetPoolRequest(name=named.name, providers=["openai"])
    await admin.accounts.set_pool(request, OPERATOR)
    id_ = await expired(ledger, key_id, "paid")
    await ledger.one(reserve(ledger.id(), key_id, 1, pool="local"))  # resolves the abandoned hold

    assert IN_USE == await fails(admin.accounts.close_pool(close(pool_id), OPERATOR))

    await ledger.one(void(id_))
    assert (await admin.accounts.close_pool(close(pool_id), OPERATOR)).closed


async def test_a_dry_run_closes_nothing(ledger: Ledger, admin: AdminParts) -> None:
    pool_id, _ = await ledger.pool()
    before = await snapshot(ledger)
    assert (await admin.accounts.close_pool(close(pool_id), TRY)).closed
    assert before == await snapshot(ledger)


async def test_what_is_no_pool_is_refused(ledger: Ledger, admin: AdminParts) -> None:
    org_id, _, _ = await ledger.new_path()
    for id_, reason in [
        (f"org_{org_id}", "INVALID_ARGUMENT POOL_ID_INVALID"),
        ("", "INVALID_ARGUMENT POOL_ID_INVALID"),
        (f"pool_{org_id}", "NOT_FOUND POOL_UNKNOWN"),
    ]:
        request = admin_pb2.ClosePoolRequest(pool_id=id_)
        assert reason == await fails(admin.accounts.close_pool(request, OPERATOR))


async def test_an_attempt_admitted_while_it_closes_is_settled_where_it_held(
    ledger: Ledger, admin: AdminParts
) -> None:
    for _ in range(10):
        pool_id, (name,) = await ledger.pool()
        await ledger.budget("pool", pool_id, None)
        key_id, id_ = await ledger.new_key(100), ledger.id()

        async def closing(pool_id: int = pool_id) -> str:
            try:
                await admin.accounts.close_pool(close(pool_id), OPERATOR)
            except errors.FailedPrecondition as error:
                return error.reason
            return "closed"

        reserving = ledger.one(reserve(id_, key_id, provider=name))
        how, answer = await asyncio.gather(closing(), reserving)
        assert ("ok", True) == (told(answer), how in {"closed", "POOL_IN_USE"})
        (row,) = await ledger.fetch("SELECT pool_id FROM reservations WHERE id = $1", id_)
        await ledger.one(settle(id_, 7))
        in_pool = (7, 0, 0) if row["pool_id"] == pool_id else (0, 0, 0)
        assert in_pool == await ledger.balances("pool", pool_id)
        assert (7, 0, 0) == await ledger.balances("key", key_id)
