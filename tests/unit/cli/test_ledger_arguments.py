"""What is typed after `penstock ledger`: amounts with a sign, times, tags; and bars."""

import pytest

from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.ledger_arguments import amount, moment, span, tags
from penstock.cli.tables import BAR_CELLS, bar, per_cent


@pytest.mark.parametrize(
    ("text", "nano_usd"),
    [
        ("1.25", 1_250_000_000),
        ("-1.25", -1_250_000_000),
        ("-0.000000001", -1),
        ("+2", 2 * 10**9),
        ("-9223372036.854775807", -(2**63 - 1)),
    ],
)
def test_an_amount_may_give_back(text: str, nano_usd: int) -> None:
    assert nano_usd == amount(text)


def test_a_span_ends_after_it_begins() -> None:
    assert (None, moment("2026-11-02", "")) == span(None, "2026-11-02")
    with pytest.raises(CliError, match="--until 2026-11-01 does not lie after --since 2026-11-01"):
        span("2026-11-01", "2026-11-01")


@pytest.mark.parametrize(
    "text", ["", "-", "--1", "-+1", "+-1", "--frob", "nan", "-inf", "1e-10", "1_0", "9223372037"]
)
def test_what_is_no_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(CliError) as caught:
        amount(text)
    assert BAD_USAGE == caught.value.code


def test_a_time_without_a_zone_is_utc() -> None:
    utc, berlin = moment("2026-11-01T12:00", "--since"), moment("2026-11-01T13:00+01:00", "--since")
    assert utc == berlin
    assert moment(None, "--since") is None


@pytest.mark.parametrize("text", ["yesterday", "", "2026-13-01", "0001-01-01T00:00+14:00"])
def test_what_is_no_time_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(CliError, match="--until"):
        moment(text, "--until")


def test_tags_are_names_and_values() -> None:
    assert {"job": "a=b", "empty": ""} == tags(["job=a=b", "empty="])
    for text in ("job", "=x"):
        with pytest.raises(CliError, match="NAME=VALUE"):
            tags([text])


@pytest.mark.parametrize(
    ("spent", "waiting", "limit", "cells", "percent"),
    [
        (0, 0, 100, "", 0),
        (1, 0, 10**9, "█", 0),
        (50, 25, 100, "█" * 10 + "▒" * 5, 75),
        (999_999, 0, 10**6, "█" * 19, 99),
        (100, 0, 100, "█" * 20, 100),
        (100, 50, 100, "█" * 20, 150),
        (0, 0, 0, "█" * 20, 100),
        (-5, 0, 100, "", -5),
    ],
)
def test_a_bar_is_full_only_where_nothing_is_left(
    spent: int, waiting: int, limit: int, cells: str, percent: int
) -> None:
    assert cells.ljust(BAR_CELLS, "░") == bar(spent, waiting, limit).plain
    assert f"{percent} %" == per_cent(spent + waiting, limit).plain
