"""While the ledger is known to be away nobody waits for it, and its return is noticed."""

import asyncio
import time

import pytest

from penstock.core.deadline import Deadline
from penstock.core.errors import DeadlineExceeded, Unavailable
from penstock.core.ids import uuid7
from penstock.quota.v1.quota_pb2 import ReserveRequest, SettleRequest
from penstock.router import ledger as ledger_module
from penstock.router.ledger import QuotaLedger
from support.fault_quota import Fault, FaultyQuota, ledger_at, serving
from support.tcp import free_port
from support.wait import until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "ASK_TRY_SECONDS", 0.2)
    monkeypatch.setattr(ledger_module, "ASK_SECONDS_MAX", 0.4)
    monkeypatch.setattr(ledger_module, "AWAY_SECONDS", 0.3)


def hold() -> ReserveRequest:
    return ReserveRequest(reservation_id=uuid7(), amount_nano_usd=1)


def soon() -> Deadline:
    return Deadline.after(10)


async def refused_after(ledger: QuotaLedger) -> float:
    """Seconds until a reserve is refused."""
    began = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        await ledger.reserve(hold(), soon())
    assert "LEDGER_UNAVAILABLE" == refused.value.reason
    assert refused.value.retry_after_seconds is not None
    return time.monotonic() - began


async def test_once_it_is_known_to_be_away_a_reserve_is_refused_at_once():
    async with ledger_at(f"127.0.0.1:{free_port()}") as ledger:
        assert await refused_after(ledger) >= 0.3
        assert await refused_after(ledger) < 0.1
        assert 2 == ledger.unavailable_count


async def test_one_at_a_time_tries_whether_it_is_back_and_all_others_are_refused_at_once():
    quota = FaultyQuota(faults=lambda _: Fault.SILENCE)
    async with serving(quota) as address, ledger_at(address) as ledger:
        await refused_after(ledger)
        await asyncio.sleep(0.35)
        before = quota.count("reserve")
        took = await asyncio.gather(*(refused_after(ledger) for _ in range(20)))
        assert 1 == quota.count("reserve") - before
        assert 1 == sum(seconds > 0.15 for seconds in took)


async def test_a_probe_that_is_answered_lets_everybody_through_again():
    port = free_port()
    async with ledger_at(f"127.0.0.1:{port}") as ledger:
        await refused_after(ledger)
        async with serving(FaultyQuota(), port):
            await until(lambda: not ledger._stream.down and ledger._breaker.admits)
            for _ in range(50):
                try:
                    await ledger.reserve(hold(), soon())
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
            await asyncio.gather(*(ledger.reserve(hold(), soon()) for _ in range(20)))


async def test_a_settle_that_arrives_proves_that_it_is_back():
    quota = FaultyQuota()
    async with serving(quota) as address, ledger_at(address) as ledger:
        request = hold()
        await ledger.reserve(request, soon())
        quota.faults = lambda o: Fault.SILENCE if o.HasField("reserve") else Fault.NONE
        await refused_after(ledger)
        quota.faults = lambda _: Fault.NONE
        assert await ledger.settle(SettleRequest(reservation_id=request.reservation_id))
        await ledger.reserve(hold(), soon())


async def test_an_account_that_is_slow_closes_the_door_to_nobody_else():
    slow = hold()
    quota = FaultyQuota()
    quota.faults = lambda o: (
        Fault.SILENCE if o.reserve.reservation_id == slow.reservation_id else Fault.NONE
    )
    async with serving(quota) as address, ledger_at(address) as ledger:
        closed: list[bool] = []

        async def give_up() -> None:
            with pytest.raises(Unavailable):
                await ledger.reserve(slow, soon())
            closed.append(ledger._breaker.is_closed)

        task = asyncio.create_task(give_up())
        while not task.done():
            await ledger.reserve(hold(), soon())
            await asyncio.sleep(0.02)
        await task
        assert [True] == closed


async def test_a_caller_who_goes_away_while_probing_leaves_the_next_to_probe():
    quota = FaultyQuota(faults=lambda _: Fault.SILENCE)
    async with serving(quota) as address, ledger_at(address) as ledger:
        await refused_after(ledger)
        await asyncio.sleep(0.35)
        task = asyncio.create_task(ledger.reserve(hold(), soon()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        quota.faults = lambda _: Fault.NONE
        await ledger.reserve(hold(), soon())


async def test_a_caller_in_a_hurry_finds_out_nothing_and_a_patient_one_does():
    quota = FaultyQuota(faults=lambda _: Fault.SILENCE)
    async with serving(quota) as address, ledger_at(address) as ledger:
        for seconds, is_closed in ((0.05, True), (0.25, False)):
            with pytest.raises(DeadlineExceeded):
                await ledger.reserve(hold(), Deadline.after(seconds))
            assert is_closed == ledger._breaker.is_closed


async def test_a_quota_service_that_knows_no_previews_yet_says_nothing_of_them():
    async with serving(FaultyQuota()) as address, ledger_at(address) as ledger:
        with pytest.raises(Unavailable) as silent:
            await ledger.preview(hold(), soon())
        assert "LEDGER_UNAVAILABLE" == silent.value.reason
