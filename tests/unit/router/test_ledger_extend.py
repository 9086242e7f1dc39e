"""Extensions over the same stream, and what the ledger's refusals mean."""

from collections.abc import AsyncIterator

import pytest

from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.core.errors import (
    BudgetExceeded,
    CreditExhausted,
    DeadlineExceeded,
    FailedPrecondition,
    RateLimited,
    Unavailable,
)
from penstock.core.ids import uuid7
from penstock.quota.v1.quota_pb2 import (
    POOL_KIND_CACHE,
    CreditRefusal,
    ExtendRequest,
    OperationError,
    RateRefusal,
    ReserveRequest,
    SettleRequest,
    VoidRequest,
)
from penstock.router import ledger as ledger_module
from penstock.router.ledger import QuotaLedger
from penstock.router.ledger_errors import error_of, is_of_caller, sooner
from support.fault_quota import Fault, FaultyQuota, ledger_at, once, serving
from support.ports import limited


@pytest.fixture
def quota() -> FaultyQuota:
    return FaultyQuota()


@pytest.fixture
async def ledger(quota: FaultyQuota) -> AsyncIterator[QuotaLedger]:
    async with serving(quota) as address, ledger_at(address) as ledger:
        yield ledger


def soon() -> Deadline:
    return Deadline.after(10)


async def held(ledger: QuotaLedger, amount: int = 100) -> str:
    id_ = uuid7()
    await ledger.reserve(ReserveRequest(reservation_id=id_, amount_nano_usd=amount), soon())
    return id_


def more(id_: str, total: int) -> ExtendRequest:
    return ExtendRequest(reservation_id=id_, amount_nano_usd=total, tokens=total, ttl_ms=1000)


@pytest.mark.parametrize("fault", [Fault.NONE, Fault.BREAK, Fault.LOSE, Fault.AWAY, Fault.TWICE])
async def test_an_extension_is_told_until_it_is_answered_and_counts_once(ledger, quota, fault):
    id_ = await held(ledger)
    quota.faults = once(fault, "extend")
    reply = await ledger.extend(more(id_, 250), soon(), "00-trace")
    assert 250 == reply.amount_nano_usd == quota.held_nano_usd
    assert "00-trace" == quota.seen[-1].traceparent
    assert 0 < quota.seen[-1].deadline_ms <= 2000


async def test_a_refused_extension_leaves_what_is_held(ledger, quota):
    quota.limit_nano_usd = 200
    id_ = await held(ledger)
    with pytest.raises(BudgetExceeded):
        await ledger.extend(more(id_, 250), soon())
    assert (100, 1) == (quota.held_nano_usd, quota.count("extend"))


async def test_a_hold_that_is_gone_is_told(ledger):
    id_ = await held(ledger)
    await ledger.void(VoidRequest(reservation_id=id_))
    with pytest.raises(FailedPrecondition):
        await ledger.extend(more(id_, 250), soon())


async def test_an_extension_that_was_given_up_voids_nothing(ledger, quota, monkeypatch):
    monkeypatch.setattr(ledger_module, "ASK_TRY_SECONDS", 0.05)
    monkeypatch.setattr(ledger_module, "ASK_SECONDS_MAX", 0.1)
    id_ = await held(ledger)
    quota.faults = lambda o: Fault.SILENCE if o.HasField("extend") else Fault.NONE
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await ledger.extend(more(id_, 250), soon())
    assert (0, 0) == (quota.count("void"), ledger.resolving)
    assert await ledger.settle(SettleRequest(reservation_id=id_, amount_nano_usd=7))


async def test_a_counted_hit_whose_answer_was_lost_is_not_voided(ledger, quota):
    quota.faults = once(Fault.SILENCE, "reserve")
    hit = ReserveRequest(reservation_id=uuid7(), pool=POOL_KIND_CACHE)
    with pytest.raises(DeadlineExceeded):
        await ledger.reserve(hit, Deadline.after(0.1))
    assert 0 == ledger.resolving


def rate(**fields: object) -> OperationError:
    facts = {
        "limit_id": "limit_4", "limit_name": "free", "account_kind": "pool",
        "account_id": "pool_3", "unit": "requests", "window": "minute", "limit": 3, "used": 3,
        "requested": 1,
    }  # fmt: skip
    refusal = RateRefusal(**(facts | fields))  # type: ignore[arg-type]
    return OperationError(code=8, reason="RATE_LIMITED", message="full", rate=refusal)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (rate(retry_after_ms=1500), RateLimited),
        (OperationError(code=8, reason="CREDIT_EXHAUSTED", message="m"), CreditExhausted),
    ],
)
async def test_the_new_refusals_are_final(ledger, quota, error, kind):
    quota.refusals = [error]
    with pytest.raises(kind):
        await held(ledger)
    assert (1, 0) == (quota.count("reserve"), ledger.resolving)


def test_a_rate_limit_says_which_and_when():
    error = error_of(rate(retry_after_ms=1500), SystemClock())
    assert (RateLimited, 1.5) == (type(error), error.retry_after_seconds)
    assert {
        "limit_id": "limit_4", "limit_name": "free", "account_kind": "pool",
        "account_id": "pool_3", "unit": "requests", "window": "minute", "limit": "3", "used": "3",
        "requested": "1", "retry_after_ms": "1500",
    } == error.metadata  # fmt: skip


def test_a_limit_in_flight_is_asked_again_soon_since_most_holds_end_before_they_expire():
    error = error_of(rate(unit="in_flight", window="total", retry_after_ms=180_000), SystemClock())
    assert error.retry_after_seconds == 1.0


def test_what_can_never_succeed_has_no_time():
    error = error_of(rate(), SystemClock())
    assert error.retry_after_seconds is None
    assert "retry_after_ms" not in error.metadata


def test_exhausted_credit_says_whose_and_how_much_is_left():
    refusal = CreditRefusal(
        account_kind="team", account_id="team_8", account_name="lab", available_nano_usd=5,
        requested_nano_usd=9,
    )  # fmt: skip
    message = OperationError(code=8, reason="CREDIT_EXHAUSTED", message="m", credit=refusal)
    error = error_of(message, SystemClock())
    assert isinstance(error, CreditExhausted)
    assert {
        "account_kind": "team", "account_id": "team_8", "account_name": "lab",
        "available_nano_usd": "5", "requested_nano_usd": "9",
    } == error.metadata  # fmt: skip
    assert error.retry_after_seconds is None


def test_of_two_limits_the_one_that_frees_first_is_told():
    late, early = limited(after_seconds=9), limited(after_seconds=2)
    never = limited(after_seconds=None)
    assert early is sooner(late, early) is sooner(early, late) is sooner(never, early)
    spent = BudgetExceeded("spent")
    assert spent is sooner(spent, early) is sooner(None, spent)


@pytest.mark.parametrize(("kind", "own"), [("pool", False), ("key", True), ("org", True)])
def test_whose_limit_it_is(kind: str, own: bool):
    assert own is is_of_caller(limited(kind))
    assert not is_of_caller(BudgetExceeded("spent", metadata={"account_kind": kind}))
