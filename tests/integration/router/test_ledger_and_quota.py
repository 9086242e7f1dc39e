"""The router's ledger client over the real quota service in a process of its own."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.core.channel import connect
from penstock.core.deadline import Deadline
from penstock.core.errors import BudgetExceeded, Conflict, NotFound
from penstock.core.ids import uuid7
from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from penstock.quota.v1.quota_pb2 import ReserveRequest, SettleRequest, VoidRequest
from penstock.router.ledger import QuotaLedger, open_stream
from support.ledger import migrated_database
from support.postgres import postgres_server
from support.quota_process import SERVICE_TOKEN, QuotaProcess, quota_process, reserve_request
from support.wait import until

__all__ = ["postgres_server"]


@contextlib.asynccontextmanager
async def ledger_of(quota: QuotaProcess) -> AsyncIterator[QuotaLedger]:
    channel = connect(quota.address)
    ledger = QuotaLedger(channel, SERVICE_TOKEN)
    try:
        yield ledger
    finally:
        await ledger.drain(5)
        await channel.close()


def soon() -> Deadline:
    return Deadline.after(20)


def settle(reserve: ReserveRequest, amount_nano_usd: int) -> SettleRequest:
    return SettleRequest(
        reservation_id=reserve.reservation_id,
        amount_nano_usd=amount_nano_usd,
        outcome="ok",
        key_id=reserve.key_id,
    )


async def test_holds_are_settled_voided_and_refused_by_name(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(postgres_server)
    async with quota_process(dsn, tmp_path) as quota, ledger_of(quota) as ledger:
        key_id = (await quota.new_key(1000)).key.id
        spent, given_back = (reserve_request(uuid7(), key_id, 400) for _ in range(2))
        for reserve in (spent, given_back, given_back):
            await ledger.reserve(reserve, soon())
        assert await quota.balances(key_id) == (0, 800, 0)
        with pytest.raises(BudgetExceeded) as refused:
            await ledger.reserve(reserve_request(uuid7(), key_id, 400), soon())
        facts = refused.value.metadata
        assert (facts["limit_nano_usd"], facts["held_nano_usd"]) == ("1000", "800")
        assert (facts["window"], facts["resets_at"]) == ("total", "never")
        assert refused.value.retry_after_seconds is None
        assert "never" in refused.value.message
        assert await ledger.settle(settle(spent, 150)) is True
        assert await ledger.settle(settle(spent, 150)) is True
        void = VoidRequest(reservation_id=given_back.reservation_id, reason="TEST", key_id=key_id)
        assert await ledger.void(void) is True
        assert await quota.balances(key_id) == (150, 0, 0)
        with pytest.raises(Conflict):
            await ledger.reserve(reserve_request(spent.reservation_id, key_id, 7), soon())
        with pytest.raises(NotFound):
            await ledger.reserve(reserve_request(uuid7(), "key_999999", 7), soon())
        assert await ledger.settle(settle(spent, 151)) is False
        assert ledger.refused_count == 1
    assert (await audit_dsn(dsn)).ok


async def test_concurrent_routers_never_overspend_and_cancelled_holds_come_back(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(postgres_server)
    chance = random.Random(7)
    async with quota_process(dsn, tmp_path) as quota:
        key_id = (await quota.new_key(100)).key.id
        settled: list[int] = []

        async def request(ledger: QuotaLedger) -> None:
            reserve = reserve_request(uuid7(), key_id, 5)
            await ledger.reserve(reserve, soon())
            settled.append(5)
            await ledger.settle(settle(reserve, 5))

        async with ledger_of(quota) as one, ledger_of(quota) as two:
            tasks = [asyncio.create_task(request(chance.choice((one, two)))) for _ in range(60)]
            await asyncio.sleep(0)
            for task in tasks[:10]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await until(lambda: one.resolving + two.resolving == 0)
        refused = sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes)
        assert (len(settled), refused) == (20, 30)
        assert await quota.balances(key_id) == (100, 0, 0)
    assert (await audit_dsn(dsn)).ok


async def test_a_quota_process_that_is_killed_loses_no_settlement(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(postgres_server)
    async with quota_process(dsn, tmp_path) as first, ledger_of(first) as ledger:
        key_id = (await first.new_key(10**6)).key.id
        holds = [reserve_request(uuid7(), key_id, 100) for _ in range(20)]
        await asyncio.gather(*(ledger.reserve(hold, soon()) for hold in holds))
        first.process.kill()
        await first.process.wait()
        told = await asyncio.gather(*(ledger.settle(settle(hold, 40)) for hold in holds))
        assert told == [False] * 20
        async with quota_process(dsn, tmp_path) as second:
            # A pod that comes back has another address; here the client is pointed to it by hand.
            ledger._stream.wire = open_stream(second.channel, SERVICE_TOKEN).wire
            await until(lambda: ledger.resolving == 0, 20)
            assert await second.balances(key_id) == (800, 0, 0)
    assert (await audit_dsn(dsn)).ok
