"""Globs and their LIKE patterns; what a page of entries is asked by; who makes a change."""

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import errors
from penstock.quota.account import kind_of, parse_id, parse_numbered
from penstock.quota.admin.shapes import read_change
from penstock.quota.budget import glob_to_like, like_to_glob
from penstock.quota.store.changes import Change
from penstock.quota.store.entry_store import EntryFilter, entries_query


@pytest.mark.parametrize(
    ("glob", "like"),
    [
        ("*", "%"),
        ("gpt-4o*", "gpt-4o%"),
        ("a_b", r"a\_b"),
        ("100%", r"100\%"),
        ("a\\b*", r"a\\b%"),
        ("", ""),
    ],
)
def test_a_glob_is_a_like_pattern_that_means_the_same(glob: str, like: str) -> None:
    assert like == glob_to_like(glob)
    assert glob == like_to_glob(like)


@given(st.text(alphabet="ab*%_\\"))
def test_every_glob_comes_back(glob: str) -> None:
    assert glob == like_to_glob(glob_to_like(glob))


def test_ids_tell_their_kind() -> None:
    assert 9 == parse_id("pool_9", "org", "pool")
    assert parse_id("pool_9", "org", "team", "key") is None
    assert "pool" == kind_of("pool_9")
    assert 4 == parse_numbered("limit_4", "limit")
    for text in ("budget_4", "limit_04", "limit_", "limit_4 ", "4"):
        assert parse_numbered(text, "limit") is None


def test_who_makes_a_change_is_in_its_metadata() -> None:
    assert Change("admin", "", dry_run=False) == read_change([])
    assert Change("ops@example.org", "a refund", dry_run=True) == read_change(
        [
            ("x-penstock-actor", "ops@example.org"),
            ("x-penstock-reason", "a refund"),
            ("x-penstock-dry-run", "1"),
            ("authorization", "Bearer x"),
        ]
    )


def test_names_and_reasons_may_be_in_any_script() -> None:
    told = read_change(
        [("x-penstock-actor", "Zo%C3%AB"), ("x-penstock-reason", "50%25 %E2%80%9Cback%E2%80%9D")]
    )
    assert ("Zo\u00eb", "50% \u201cback\u201d") == (told.actor, told.reason)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("x-penstock-actor", "", "ACTOR_INVALID"),
        ("x-penstock-actor", "a%00b", "ACTOR_INVALID"),
        ("x-penstock-actor", "a" * 129, "ACTOR_INVALID"),
        ("x-penstock-actor", "a\tb", "ACTOR_INVALID"),
        ("x-penstock-reason", "r" * 513, "REASON_INVALID"),
        ("x-penstock-dry-run", "0", "DRY_RUN_INVALID"),
        ("x-penstock-dry-run", "true", "DRY_RUN_INVALID"),
    ],
)
def test_a_faulty_header_is_named(name: str, value: str, reason: str) -> None:
    with pytest.raises(errors.InvalidRequest) as raised:
        read_change([(name, value)])
    assert reason == raised.value.reason
    assert [name] == [violation.field for violation in raised.value.violations]


EVERY_FILTER = EntryFilter(
    request_id="req",
    key_id=1,
    reservation_id="01a20d60-6fe6-7310-8e54-b7c11791ba12",
    account=("org", 2),
    operation="settle",
    provider="openai",
    model="m",
    end_user="u",
    tags={"a": "b"},
    since=datetime(2026, 1, 1, tzinfo=UTC),
    until=datetime(2027, 1, 1, tzinfo=UTC),
)


@pytest.mark.parametrize("wanted", [EntryFilter(), EVERY_FILTER])
def test_every_argument_of_a_page_has_its_place(wanted: EntryFilter) -> None:
    query, arguments = entries_query(wanted, before_id=7, rows_max=3)

    places = {int(place) for place in re.findall(r"\$(\d+)", query)}
    assert set(range(1, len(arguments) + 1)) == places
    assert ("reservations r ON r.id = e.reservation_id WHERE" in query) == (wanted is EVERY_FILTER)
