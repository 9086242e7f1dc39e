from dataclasses import replace

import pytest

from penstock.core import errors
from penstock.core.ids import API_KEY_PREFIX, uuid7
from penstock.quota.account import new_secret, parse_id, secret_hash
from penstock.quota.ledger import _REASONS, BudgetRefused, Refusal, refused
from support.ledger import reserve, settle

REFUSAL = Refusal(
    budget_id=4,
    budget_name="pocket money",
    account_kind="team",
    account_id=7,
    window="month",
    limit_nano_usd=25_000_000_000,
    posted_nano_usd=24_999_999_996,
    held_nano_usd=3,
    suspense_nano_usd=0,
    requested_nano_usd=2,
    resets_at_ms=1_796_079_600_000,
)


def test_a_refusal_says_budget_account_rest_and_reset_exactly() -> None:
    error = refused("BUDGET_EXCEEDED", reserve(uuid7(), 1), REFUSAL)

    assert isinstance(error, BudgetRefused)
    assert (
        "budget 'pocket money' (month) of team_7 has 0.000000001 USD left of 25.00, the attempt "
        "may cost 0.000000002; it resets at 2026-11-30T23:00:00Z"
    ) == error.message
    assert ("budget_4", "team_7") == (error.metadata["budget_id"], error.metadata["account_id"])


def test_an_overspent_budget_has_nothing_left_rather_than_less() -> None:
    overspent = replace(REFUSAL, posted_nano_usd=26_000_000_000)

    assert "has 0.00 USD left" in BudgetRefused(overspent).message


@pytest.mark.parametrize("reason", sorted(_REASONS))
def test_every_reason_has_a_text_that_names_what_it_is_about(reason: str) -> None:
    id_ = uuid7()
    operation = reserve(id_, 5)

    error = refused(reason, operation, None)

    assert reason == error.reason
    assert id_ in error.message or "key_5" in error.message
    assert "{" not in error.message


def test_reasons_of_reservations_need_no_key() -> None:
    error = refused("RESERVATION_SETTLED", settle(uuid7(), 1), None)

    assert isinstance(error, errors.FailedPrecondition)


def test_keys_are_long_random_and_all_different() -> None:
    secrets = {new_secret() for _ in range(100)}

    assert len(secrets) == 100
    # 6 bits a character: at least 160 bits.
    assert all((len(secret) - len(API_KEY_PREFIX)) * 6 >= 160 for secret in secrets)
    assert {32} == {len(secret_hash(secret)) for secret in secrets}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("org_1", 1),
        ("org_0", None),
        ("org_01", None),
        ("org_", None),
        ("org_-1", None),
        ("org_1 ", None),
        ("ORG_1", None),
        ("key_1", None),
        ("org_١", None),
        ("org_" + "9" * 19, None),
    ],
)
def test_ids_have_one_spelling(text: str, number: int | None) -> None:
    assert number == parse_id(text, "org", "team")
