"""A service's words as an operator reads them."""

import pytest

from penstock.cli import admin, wording
from penstock.core.errors import FailedPrecondition, FieldViolation, InvalidRequest

NAMES = {"key_3": "key:acme/search/ci", "org_1": "org:acme"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("at most 5000000000 nano-USD (5.00 USD) here", "at most 5.00 USD here"),
        ("-250000000 nano-USD are posted", "-0.25 USD are posted"),
        ("with another amount_nano_usd and reason", "with another AMOUNT and reason"),
        ("scope.models and starts_at", "--model and --starts"),
        ("the window of the name", "the window of the name"),
        ("key_3 and key_4 of org_1", "key:acme/search/ci (key_3) and key_4 of org:acme (org_1)"),
        ("a monkey_3", "a monkey_3"),
    ],
)
def test_a_sentence_has_usd_options_and_names(text: str, told: str) -> None:
    assert told == wording.sentence(text, names=NAMES)


@pytest.mark.parametrize(
    ("field", "method", "told"),
    [
        ("scope.models[7]", "", "--model"),
        ("expires_at", "CreateGrant", "--expires or --for"),
        ("expires_at", "CreateKey", "--expires"),
        ("name", "", "the name"),
        ("of_another_release", "", "of_another_release"),
    ],
)
def test_a_field_is_what_an_operator_types(field: str, method: str, told: str) -> None:
    assert told == wording.option(field, method)


def test_a_violation_with_a_bare_amount_is_told_in_usd() -> None:
    described = "is -5000000000; an amount is 0 or more nano-USD"
    said = wording.fault("amount_nano_usd", described)
    assert "AMOUNT: is -5.00 USD; an amount is 0 USD or more" == said


def test_all_faults_of_a_request_are_told_so() -> None:
    error = InvalidRequest.of(
        [FieldViolation("grant_key", "takes 1 to 128 characters"), FieldViolation("x", "no")],
        reason="GRANT_KEY_INVALID",
    )
    said = admin.told(error, "here", "CreateGrant").message
    assert "GRANT_KEY_INVALID: --key: takes 1 to 128 characters\n  x: no" == said


def test_a_missing_budget_without_names_is_told_by_id() -> None:
    error = FailedPrecondition("no budget of key key_3 applies", reason="BUDGET_MISSING")
    assert "budget set 5 --account key_3`" in admin.told(error, "here").remedy
    assert "--account key:acme/search/ci`" in admin.told(error, "here", names=NAMES).remedy
