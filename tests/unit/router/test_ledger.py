"""The router's side of the bargain, over a real gRPC server that loses, breaks and repeats."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.core.errors import (
    BudgetExceeded,
    CapacityExhausted,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from penstock.core.ids import uuid7
from penstock.quota.v1.quota_pb2 import (
    BudgetRefusal,
    OperationError,
    ReserveRequest,
    SettleRequest,
    VoidRequest,
)
from penstock.router import ledger as ledger_module
from penstock.router.ledger import QuotaLedger
from penstock.router.ledger_errors import error_of
from support.fault_quota import Fault, FaultyQuota, ledger_at, once, serving
from support.tcp import free_port
from support.wait import until


@pytest.fixture
def quota() -> FaultyQuota:
    return FaultyQuota()


@pytest.fixture
async def ledger(quota: FaultyQuota) -> AsyncIterator[QuotaLedger]:
    async with serving(quota) as address, ledger_at(address) as ledger:
        yield ledger


def hold(amount: int = 100, reservation_id: str = "") -> ReserveRequest:
    return ReserveRequest(reservation_id=reservation_id or uuid7(), amount_nano_usd=amount)


def soon() -> Deadline:
    return Deadline.after(10)


async def resolved(ledger: QuotaLedger) -> None:
    await until(lambda: ledger.resolving == 0)


async def test_reserve_and_settle_in_one_message_each(ledger, quota) -> None:
    request = hold(100)
    reply = await ledger.reserve(request, soon(), "00-trace")
    assert reply.reservation_id == request.reservation_id
    assert await ledger.settle(
        SettleRequest(reservation_id=request.reservation_id, amount_nano_usd=30)
    )
    assert quota.states == {request.reservation_id: ("settled", 30)}
    assert quota.batches == [1, 1]
    assert quota.seen[0].traceparent == "00-trace"
    assert 0 < quota.seen[0].deadline_ms <= 2000


@pytest.mark.parametrize("fault", [Fault.BREAK, Fault.LOSE, Fault.AWAY, Fault.TWICE])
async def test_a_reserve_is_tried_again_under_its_id_and_held_once(ledger, quota, fault) -> None:
    quota.faults = once(fault, "reserve")
    request = hold(100)
    await ledger.reserve(request, soon())
    assert {o.reserve.reservation_id for o in quota.seen} == {request.reservation_id}
    assert quota.held_nano_usd == 100
    assert ledger.resolving == 0


@pytest.mark.parametrize("fault", [Fault.BREAK, Fault.LOSE, Fault.AWAY, Fault.TWICE])
@pytest.mark.parametrize("kind", ["settle", "void"])
async def test_a_resolution_is_told_until_it_is_acknowledged(ledger, quota, fault, kind) -> None:
    request = hold(100)
    await ledger.reserve(request, soon())
    quota.faults = once(fault, kind)
    if kind == "settle":
        done = await ledger.settle(
            SettleRequest(reservation_id=request.reservation_id, amount_nano_usd=30)
        )
        assert quota.states[request.reservation_id] == ("settled", 30)
    else:
        done = await ledger.void(VoidRequest(reservation_id=request.reservation_id))
        assert quota.states[request.reservation_id] == ("voided", 0)
    assert done is True
    assert ledger.resolving == 0


async def test_a_reserve_whose_answer_never_came_is_voided_in_the_background(
    ledger, quota, monkeypatch
) -> None:
    monkeypatch.setattr(ledger_module, "ASK_TRY_SECONDS", 0.1)
    monkeypatch.setattr(ledger_module, "ASK_SECONDS_MAX", 0.3)
    quota.faults = lambda o: Fault.SILENCE if o.HasField("reserve") else Fault.NONE
    request = hold(100)
    with pytest.raises(Unavailable) as given_up:
        await ledger.reserve(request, soon())
    assert given_up.value.reason == "LEDGER_UNAVAILABLE"
    await resolved(ledger)
    assert quota.states == {request.reservation_id: ("voided", 0)}
    assert quota.count("reserve") >= 2
    assert ledger.unavailable_count == 1


async def test_a_reserve_ends_at_the_requests_deadline_and_is_voided(ledger, quota) -> None:
    quota.faults = lambda o: Fault.SILENCE if o.HasField("reserve") else Fault.NONE
    with pytest.raises(DeadlineExceeded):
        await ledger.reserve(hold(100), Deadline.after(0.15))
    await resolved(ledger)
    assert quota.held_nano_usd == 0


async def test_a_reserve_that_is_cancelled_in_flight_is_voided(ledger, quota) -> None:
    quota.faults = once(Fault.SILENCE, "reserve")
    task = asyncio.create_task(ledger.reserve(hold(100), soon()))
    await until(lambda: bool(quota.seen))
    assert quota.held_nano_usd == 100
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await resolved(ledger)
    assert quota.held_nano_usd == 0


async def test_a_reserve_that_never_left_is_not_voided(monkeypatch) -> None:
    monkeypatch.setattr(ledger_module, "ASK_SECONDS_MAX", 0.3)
    async with ledger_at(f"127.0.0.1:{free_port()}") as ledger:
        # The first operations may leave into a stream that only then proves to be dead.
        with pytest.raises(Unavailable):
            await ledger.reserve(hold(), soon())
        await until(lambda: bool(ledger._stream.down))
        before = ledger.resolving
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await ledger.reserve(hold(), Deadline.after(0.001))
        assert ledger.resolving == before


async def test_a_refusal_is_final_and_not_voided(ledger, quota) -> None:
    quota.limit_nano_usd = 50
    with pytest.raises(BudgetExceeded) as refused:
        await ledger.reserve(hold(100), soon())
    assert refused.value.metadata["budget_name"] == "b"
    assert refused.value.metadata["resets_at"] == "never"
    assert refused.value.retry_after_seconds is None
    assert quota.count("reserve") == 1
    assert ledger.resolving == 0


async def test_a_settle_goes_on_when_its_caller_is_cancelled(ledger, quota) -> None:
    request = hold(100)
    await ledger.reserve(request, soon())
    quota.faults = once(Fault.BREAK, "settle")
    settle = SettleRequest(reservation_id=request.reservation_id, amount_nano_usd=7)
    task = asyncio.create_task(ledger.settle(settle))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await resolved(ledger)
    assert quota.states[request.reservation_id] == ("settled", 7)


async def test_a_settle_during_an_outage_says_false_and_arrives_after_it(
    quota, monkeypatch
) -> None:
    monkeypatch.setattr(ledger_module, "ACKNOWLEDGE_SECONDS", 0.1)
    port = free_port()
    async with ledger_at(f"127.0.0.1:{port}") as ledger:
        request = hold(100)
        async with serving(quota, port):
            await ledger.reserve(request, soon())
        settle = SettleRequest(reservation_id=request.reservation_id, amount_nano_usd=7)
        assert await ledger.settle(settle) is False
        assert ledger.resolving == 1
        async with serving(quota, port):
            await resolved(ledger)
    assert quota.states[request.reservation_id] == ("settled", 7)


async def test_what_the_ledger_will_never_take_is_counted_and_ended(ledger, quota) -> None:
    unknown = SettleRequest(reservation_id=uuid7(), amount_nano_usd=7)
    assert await ledger.settle(unknown) is False
    assert (ledger.refused_count, ledger.resolving) == (1, 0)


async def test_the_queue_of_resolutions_is_bounded(quota, monkeypatch) -> None:
    monkeypatch.setattr(ledger_module, "RESOLVING_MAX", 3)
    monkeypatch.setattr(ledger_module, "ACKNOWLEDGE_SECONDS", 0.01)
    async with ledger_at(f"127.0.0.1:{free_port()}") as ledger:
        monkeypatch.setattr(QuotaLedger._resolve, "__defaults__", (3,))
        for _ in range(5):
            assert await ledger.settle(SettleRequest(reservation_id=uuid7())) is False
        assert (ledger.resolving, ledger.dropped_count) == (3, 2)


async def test_drain_waits_for_what_is_being_resolved_and_tells_what_is_left(quota) -> None:
    async with serving(quota) as address, ledger_at(address) as ledger:
        request = hold(100)
        await ledger.reserve(request, soon())
        quota.faults = once(Fault.BREAK, "settle")
        settle = SettleRequest(reservation_id=request.reservation_id, amount_nano_usd=7)
        task = asyncio.create_task(ledger.settle(settle))
        await asyncio.sleep(0)
        assert await ledger.drain(5) == 0
        assert await task is True
    async with ledger_at(f"127.0.0.1:{free_port()}") as ledger:
        task = asyncio.create_task(ledger.settle(SettleRequest(reservation_id=uuid7())))
        await asyncio.sleep(0)
        assert await ledger.drain(0.1) == 1
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("seed", range(3))
async def test_after_any_faults_the_books_agree_with_what_the_callers_know(quota, seed) -> None:
    """Lost answers, breaks, repeats, cancellations: nothing stays held or is posted twice."""
    chance = random.Random(seed)
    faults = [Fault.NONE] * 40 + [Fault.BREAK, Fault.LOSE, Fault.AWAY, Fault.TWICE]
    quota.faults = lambda _: chance.choice(faults)
    spent: dict[str, int] = {}

    async def request(number: int) -> None:
        reserve = hold(1000)
        await ledger.reserve(reserve, soon())
        if number % 3 == 0:
            await ledger.void(VoidRequest(reservation_id=reserve.reservation_id))
            return
        settle = SettleRequest(reservation_id=reserve.reservation_id, amount_nano_usd=number)
        spent[reserve.reservation_id] = number
        await ledger.settle(settle)

    async with serving(quota) as address, ledger_at(address) as ledger:
        tasks = [asyncio.create_task(request(number)) for number in range(60)]
        await asyncio.sleep(0.01)
        for task in tasks[::7]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await resolved(ledger)
        assert quota.held_nano_usd == 0
        posted = {
            id_: amount for id_, (state, amount) in quota.states.items() if state == "settled"
        }
        assert posted == spent


async def test_many_operations_at_once_share_messages(ledger, quota) -> None:
    await asyncio.gather(*(ledger.reserve(hold(1), soon()) for _ in range(500)))
    assert quota.held_nano_usd == 500
    assert len(quota.batches) <= 20


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (3, "AMOUNT_NEGATIVE", InvalidRequest),
        (5, "KEY_UNKNOWN", NotFound),
        (6, "RESERVATION_ID_REUSED", Conflict),
        (8, "BUDGET_EXCEEDED", BudgetExceeded),
        (8, "LANE_FULL", CapacityExhausted),
        (14, "LEDGER_UNAVAILABLE", Unavailable),
        (4, "DEADLINE_EXCEEDED", DeadlineExceeded),
    ],
)
def test_an_error_of_the_ledger_keeps_its_kind_and_reason(code, reason, expected) -> None:
    error = error_of(OperationError(code=code, reason=reason, message="m"), SystemClock())
    assert (type(error), error.reason, error.message) == (expected, reason, "m")


def test_a_refusal_tells_the_budget_and_when_it_resets() -> None:
    refusal = BudgetRefusal(
        budget_id="bud_1", budget_name="march", account_kind="team", account_id="team_1",
        window="month", limit_nano_usd=10, posted_nano_usd=4, held_nano_usd=3,
        suspense_nano_usd=2, requested_nano_usd=5,
    )  # fmt: skip
    refusal.resets_at.FromSeconds(1_000_060)

    class Fixed:
        def unix_seconds(self) -> float:
            return 1_000_000.0

        def monotonic_seconds(self) -> float:
            return 0.0

    message = OperationError(code=8, reason="BUDGET_EXCEEDED", message="m", refusal=refusal)
    error = error_of(message, Fixed())
    assert error.metadata == {
        "budget_id": "bud_1", "budget_name": "march", "account_kind": "team",
        "account_id": "team_1", "window": "month", "limit_nano_usd": "10",
        "posted_nano_usd": "4", "held_nano_usd": "3", "suspense_nano_usd": "2",
        "requested_nano_usd": "5", "resets_at": "1970-01-12T13:47:40Z",
    }  # fmt: skip
    assert error.retry_after_seconds == 60
