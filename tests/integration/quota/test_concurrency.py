"""No overspend from several processes at once (LEDGER, I1; how it is proven, 2)."""

import asyncio
import random
from pathlib import Path

import grpc
import pytest

from penstock.core.ids import uuid7
from penstock.core.postgres_server import PrivateServer
from penstock.core.status import from_rpc_error
from penstock.quota.audit import audit_dsn
from penstock.quota.v1 import quota_pb2
from support.ledger import Ledger, migrated_database, reserve, settle, told, void
from support.quota_process import SERVICE, quota_process, reserve_request


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
async def test_fifty_tasks_of_five_on_a_hundred_are_exactly_twenty(
    postgres_server: PrivateServer, tmp_path: Path, streamed: bool
) -> None:
    dsn = await migrated_database(postgres_server)
    async with quota_process(dsn, tmp_path) as one, quota_process(dsn, tmp_path) as two:
        key_id = (await one.new_key(100)).key.id
        requests = [reserve_request(uuid7(), key_id, 5) for _ in range(50)]
        ask = _stream if streamed else _unary

        answers = await asyncio.gather(ask(one.quota, requests[:25]), ask(two.quota, requests[25:]))

        told_ = answers[0] + answers[1]
        assert (20, 30) == (told_.count("ok"), told_.count("BUDGET_EXCEEDED"))
        assert await one.balances(key_id) == (0, 100, 0)
    assert (await audit_dsn(dsn)).ok


async def _unary(stub, requests: list[quota_pb2.ReserveRequest]) -> list[str]:
    async def ask(request: quota_pb2.ReserveRequest) -> str:
        try:
            await stub.Reserve(request, metadata=SERVICE)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error).reason
        return "ok"

    return list(await asyncio.gather(*(ask(request) for request in requests)))


async def _stream(stub, requests: list[quota_pb2.ReserveRequest]) -> list[str]:
    call = stub.Batch(metadata=SERVICE)
    for n, request in enumerate(requests, 1):
        operation = quota_pb2.Operation(operation_id=n, reserve=request)
        await call.write(quota_pb2.BatchRequest(operations=[operation]))
    await call.done_writing()
    results = [result async for response in call for result in response.results]
    assert sorted(r.operation_id for r in results) == list(range(1, len(requests) + 1))
    return ["ok" if r.HasField("reserve") else r.error.reason for r in results]


async def test_many_batches_over_crossing_paths_never_deadlock_for_good(ledger: Ledger) -> None:
    """Keys of two organisations in every order, so that batches want the same rows crosswise."""
    keys = []
    for _ in range(2):
        org_id, team_id, key_id = await ledger.new_path()
        for kind, account_id in (("org", org_id), ("team", team_id), ("key", key_id)):
            await ledger.budget(kind, account_id, 10**9)
        keys.append(key_id)
    rng = random.Random(7)

    async def worker() -> list[str]:
        answers = []
        for _ in range(10):
            batch, ids = [], []
            for key_id in rng.sample(keys * 3, 6):
                ids.append(ledger.id())
                batch.append(reserve(ids[-1], key_id, rng.randrange(50)))
            answers += [told(o) for o in await ledger.apply(*batch)]
            rng.shuffle(ids)
            ends = [settle(i, 20) if rng.random() < 0.5 else void(i) for i in ids]
            answers += [told(o) for o in await ledger.apply(*ends)]
        return answers

    answers = await asyncio.gather(*(worker() for _ in range(8)))

    assert {"ok"} == {a for answer in answers for a in answer}
    assert 8 * 120 == sum(len(answer) for answer in answers)


async def test_an_administrators_lock_stalls_one_account_only_and_not_for_ever(
    ledger: Ledger,
) -> None:
    slow, quick = await ledger.new_key(100), await ledger.new_key(100)
    await ledger.apply(reserve(ledger.id(), slow, 1), reserve(ledger.id(), quick, 1))
    async with ledger.database.connection() as admin, admin.transaction():
        await admin.execute(
            "UPDATE buckets b SET posted = posted FROM budgets x"
            " WHERE x.id = b.budget_id AND x.account_id = $1",
            slow,
        )
        stalled = asyncio.create_task(ledger.one(reserve(ledger.id(), slow, 1)))
        assert told(await ledger.one(reserve(ledger.id(), quick, 1))) == "ok"
        assert not stalled.done()
        with pytest.raises(Exception, match="being changed by somebody else") as raised:
            await stalled
    assert raised.value.reason == "LEDGER_BUSY"
