from typing import Any

import pytest

from penstock.quota.alerts.alert import KINDS
from penstock.quota.alerts.text import message
from support.alerts import an_alert

USD = 10**9
BUDGET = {"budget_name": "monthly", "window": "month", "limit_nano_usd": 100 * USD}
DETAILS: dict[str, dict[str, Any]] = {
    "budget_threshold": {**BUDGET, "percent": 80, "spent_nano_usd": 81 * USD},
    "budget_exhaustion_forecast": {
        **BUDGET, "spent_nano_usd": 60 * USD, "exhausted_at": "2026-11-16 20:00 UTC",
        "window_ends_at": "2026-12-01 00:00 UTC",
    },
    "overage": {
        "reservation_id": "0192", "amount_nano_usd": USD, "posted_nano_usd": USD + 5,
    },
    "late_settle": {
        "reservation_id": "0192", "amount_nano_usd": USD, "posted_nano_usd": USD,
    },
    "suspense_old": {
        "provider": "openai", "hour": "2026-11-09 11:00 UTC", "older_than_hours": 24,
        "reservations": 2, "suspense_nano_usd": 3 * USD,
    },
    "drift": {
        "provider": "openai", "day": "2026-11-09", "model": "gpt-4o-mini",
        "reported_nano_usd": 12 * USD, "posted_nano_usd": 10 * USD, "drift_nano_usd": 2 * USD,
    },
    "grant_expiring": {
        "grant_name": "trial", "amount_nano_usd": 18 * USD, "unused_nano_usd": 5 * USD,
        "expires_at": "2026-11-18 00:00 UTC",
    },
    "test": {},
}  # fmt: skip


def _text(kind: str, **changes: Any) -> str:
    return message(an_alert(kind, "team acme/search", **(DETAILS[kind] | changes)))


def test_every_kind_has_words_of_its_own() -> None:
    assert sorted(KINDS) == sorted(DETAILS)
    texts = [_text(kind) for kind in KINDS]
    assert len(KINDS) == len(set(texts))
    assert not [text for text in texts if "alert of kind" in text]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("budget_threshold", ["Team acme/search", "80 %", '"monthly"', "81.00 of 100.00 USD"]),
        ("budget_exhaustion_forecast", ["2026-11-16 20:00 UTC", "60.00 of 100.00 USD"]),
        ("overage", ["1.000000005 USD", "held 1.00 USD", "0.000000005 USD more", "0192"]),
        ("late_settle", ["1.00 USD after the hold", "0192"]),
        ("suspense_old", ["3.00 USD in suspense", "24 hours", "2 abandoned attempts", "openai"]),
        ("drift", ["openai reports 12.00 USD", "2.00 USD more", "10.00 USD", "gpt-4o-mini"]),
        ("grant_expiring", ["5.00 of 18.00 USD", '"trial"', "2026-11-18 00:00 UTC"]),
    ],
)
def test_a_text_names_who_how_much_and_what_to_do(kind: str, words: list[str]) -> None:
    text = _text(kind)
    assert [] == [word for word in words if word not in text]
    assert ": " in text


def test_a_full_budget_refuses_until_its_window_ends_if_it_ever_does() -> None:
    month = _text("budget_threshold", percent=100, spent_nano_usd=100 * USD)
    covered = "requests that it covers are refused until"
    assert f"{covered} the window ends or `penstock budget set` raises the limit" in month
    total = _text("budget_threshold", percent=100, spent_nano_usd=100 * USD, window="total")
    assert "refused until `penstock budget set` raises the limit" in total


def test_less_than_expected_is_a_drift_too() -> None:
    assert "2.00 USD less" in _text("drift", drift_nano_usd=-2 * USD)


@pytest.mark.parametrize("kind", ["overage", "a kind of another version"])
def test_a_detail_that_lacks_facts_is_told_in_general(kind: str) -> None:
    text = message(an_alert(kind, "team acme/search"))
    assert f"Team acme/search has an alert of kind {kind}" in text
