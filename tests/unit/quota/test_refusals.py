from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.quota.account import BudgetUnit
from penstock.quota.ledger import Operation
from penstock.quota.refusals import (
    _REASONS,
    BudgetRefused,
    CreditFacts,
    CreditRefused,
    LimitFacts,
    RateRefused,
    refused,
)
from support.ledger import reserve, settle

NOW = datetime(2026, 11, 30, 22, 59, 30, tzinfo=UTC)
BUDGET = LimitFacts(
    budget_id=4,
    budget_name="pocket-money",
    account_kind="team",
    account_id=7,
    account_name="search",
    unit="nano_usd",
    window="month",
    time_zone="Europe/Berlin",
    limit=25_000_000_000,
    posted=24_999_999_996,
    held=3,
    suspense=0,
    requested=2,
    resets_at_ms=1_796_079_600_000,
)
RATE = replace(BUDGET, unit="requests", window="minute", limit=60, posted=58, held=2, requested=1)
CREDIT = CreditFacts("org", 3, "acme", available=5, requested=2_000_000_000)


def test_a_refusal_says_budget_account_rest_and_reset_exactly() -> None:
    error = told("BUDGET_EXCEEDED", BUDGET)

    assert isinstance(error, BudgetRefused)
    assert (
        "budget 'pocket-money' (month, Europe/Berlin) of team 'search' has 0.000000001 USD left of "
        "25.00, the attempt may cost 0.000000002; it resets at 2026-11-30T23:00:00Z"
    ) == error.message
    assert ("budget_4", "team_7") == (error.metadata["budget_id"], error.metadata["account_id"])


def test_an_overspent_budget_has_nothing_left_rather_than_less() -> None:
    assert "has 0.00 USD left" in BudgetRefused(replace(BUDGET, posted=26_000_000_000)).message


def test_a_full_limit_says_when_it_frees_up_by_the_ledgers_clock() -> None:
    error = told("RATE_LIMITED", RATE)

    assert isinstance(error, RateRefused)
    assert error.retry_after_seconds == 30.0
    assert (
        "limit 'pocket-money' (minute) of team 'search' has 0 requests left of 60, the attempt "
        "counts 1; it resets at 2026-11-30T23:00:00Z"
    ) == error.message
    assert ("limit_4", "60") == (error.metadata["limit_id"], error.metadata["used"])


@pytest.mark.parametrize("unit", ["nano_usd", "requests", "tokens"])
def test_budgets_and_limits_tell_their_window_its_zone_and_its_reset_alike(
    unit: BudgetUnit,
) -> None:
    facts = replace(BUDGET, unit=unit, posted=BUDGET.limit)
    reason = "BUDGET_EXCEEDED" if unit == "nano_usd" else "RATE_LIMITED"
    error = told(reason, facts)

    assert "'pocket-money' (month, Europe/Berlin) of team 'search' has 0" in error.message
    assert error.message.endswith("; it resets at 2026-11-30T23:00:00Z")
    named = [error.metadata[name] for name in ("window", "time_zone", "resets_at")]
    assert ["month", "Europe/Berlin", "2026-11-30T23:00:00Z"] == named


def test_a_limit_in_flight_has_no_window() -> None:
    error = told("RATE_LIMITED", replace(RATE, unit="in_flight", window="total", time_zone="UTC"))

    assert (
        "limit 'pocket-money' of team 'search' has 0 requests in flight left of 60, the attempt "
        "counts 1; try again when one has ended"
    ) == error.message
    assert "resets_at" not in error.metadata


def test_more_than_the_limit_alone_is_never_to_be_tried_again() -> None:
    error = RateRefused(replace(RATE, unit="tokens", requested=61), NOW)

    assert error.retry_after_seconds is None
    assert "ask for less, or raise it" in error.message


def test_a_window_that_is_over_meanwhile_is_tried_again_at_once() -> None:
    assert RateRefused(RATE, NOW + timedelta(minutes=1)).retry_after_seconds == 0


def test_exhausted_credit_says_whose_and_what_is_left() -> None:
    error = told("CREDIT_EXHAUSTED", CREDIT)

    assert isinstance(error, CreditRefused)
    assert (
        "prepaid org 'acme' has 0.000000005 USD of usable credit left, the attempt may cost 2.00; "
        "its operator can grant more"
    ) == error.message


@pytest.mark.parametrize("reason", sorted(_REASONS))
def test_every_reason_has_a_text_that_names_what_it_is_about(reason: str) -> None:
    operation = reserve(uuid7(), 5)

    error = refused(reason, operation, None, NOW)

    assert reason == error.reason
    assert operation.reservation_id in error.message or "key_5" in error.message
    assert "{" not in error.message


def test_reasons_of_reservations_need_no_key() -> None:
    error = refused("RESERVATION_SETTLED", settle(uuid7(), 1), None, NOW)

    assert isinstance(error, errors.FailedPrecondition)


def told(reason: str, facts: LimitFacts | CreditFacts) -> errors.PenstockError:
    operation: Operation = reserve(uuid7(), 1)
    return refused(reason, operation, msgspec.json.encode(asdict(facts)).decode(), NOW)
