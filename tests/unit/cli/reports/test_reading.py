"""Exports that are right: what is read of them, exactly."""

from datetime import date
from fractions import Fraction

import pytest

from penstock.cli.reports import together
from penstock.cli.reports.rows import model_of_line_item
from penstock.cli.reports.together import Row
from support.exports import DAY, bucket, costs, page, usage

NEXT = date(2026, 11, 2)
MODEL = "gpt-4o-mini-2024-07-18"


def rows(*texts: str, since: date = DAY, until: date = NEXT, price=lambda *_: None) -> list[Row]:
    reports = [together.parse(f"file{n}", text) for n, text in enumerate(texts, 1)]
    return together.rows(reports, since=since, until=until, price=price)


def test_the_costs_of_a_model_are_summed_exactly_and_rounded_once() -> None:
    (found,) = rows(
        page(
            bucket(
                0,
                costs("0.0000000004"),
                costs("0.0000000004", line_item=f"{MODEL}, cached input"),
                costs("0.003835980000000000000000000000", line_item=f"{MODEL}, output"),
            )
        )
    )
    # 0.4 + 0.4 nano-USD are 1, though each alone would be 0.
    assert 3_835_981 == found.amount_nano_usd
    assert (DAY, MODEL, "proj_a", "") == (found.day, found.model, found.project, found.key)


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0.06", 60_000_000),
        ("25.000000000000004", 25_000_000_000),
        ("0.1", 100_000_000),
        ("1e-9", 1),
        ("0", 0),
        ("123456789.123456789", 123_456_789_123_456_789),
        ('\\"0.25\\"', 250_000_000),
    ],
)
def test_an_amount_is_its_decimal_text_and_never_a_float(text: str, nano: int) -> None:
    told = page(bucket(0, costs(text))).replace('\\\\"', '"').replace('\\"', '"')
    assert [nano] == [row.amount_nano_usd for row in rows(told)]


def test_usage_with_costs_of_its_day_only_counts() -> None:
    found = rows(page(bucket(0, usage())), page(bucket(0, costs("0.5"))))
    assert [(5, 0, "key_1"), (0, 500_000_000, "")] == sorted(
        ((r.requests, r.amount_nano_usd, r.key) for r in found), reverse=True
    )
    assert not any(row.priced for row in found)


def test_usage_alone_is_priced_by_its_tokens_of_a_day() -> None:
    asked = []

    def price(*tokens: object) -> int:
        asked.append(tokens)
        return 77

    hours = [bucket(0, usage(), start=h * 3600, width=3600) for h in range(24)]
    (found,) = rows(page(*hours), price=price)
    assert [(MODEL, 24_000, 19_200, 12_000)] == asked
    assert (77, 120, True) == (found.amount_nano_usd, found.requests, found.priced)


def test_pages_that_follow_each_other_are_one_report_in_any_order() -> None:
    first = page(bucket(0, costs("1")), next_page="AAAA")
    second = page(bucket(1, costs("2")))
    found = rows(second, first, until=date(2026, 11, 3))
    assert [10**9, 2 * 10**9] == [row.amount_nano_usd for row in found]


def test_a_list_of_pages_is_read_as_its_pages() -> None:
    both = f"[{page(bucket(0, costs('1')), next_page='A')}, {page(bucket(1))}]"
    assert 1 == len(rows(both, until=date(2026, 11, 3)))


def test_days_outside_are_left_out() -> None:
    text = page(bucket(0, costs("1")), bucket(1, costs("2")))
    assert [10**9] == [row.amount_nano_usd for row in rows(text)]


@pytest.mark.parametrize(
    ("item", "model"),
    [
        ("gpt-4o-mini-2024-07-18, input", "gpt-4o-mini-2024-07-18"),
        ("gpt-5.5-2026-04-23, cached input", "gpt-5.5-2026-04-23"),
        ("priority | gpt-5.6-sol, output, long context", "gpt-5.6-sol"),
        ("gpt-audio-mini-2025-12-15 audio, input", "gpt-audio-mini-2025-12-15"),
        ("gpt-5-nano, input_tokens", "gpt-5-nano"),
        ("ft:gpt-4o-2024-08-06:acme::abc, output", "ft:gpt-4o-2024-08-06:acme::abc"),
        ("web search tool calls", "web search tool calls"),
        ("gpt-4", "gpt-4"),
    ],
)
def test_the_model_of_a_line_item(item: str, model: str) -> None:
    assert model == model_of_line_item(item)


DASHBOARD = (
    "start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,"
    "line_item,user_id,project_id,user_email\r\n"
    "1793491200,1793577600,2026-11-01T00:00:00+00:00,2026-11-02T00:00:00+00:00,"
    '0.5000000000000000000000,usd,1000,"gpt-5-nano, input",,proj_a,someone@example.com\r\n'
    "1793491200,1793577600,2026-11-01T00:00:00+00:00,2026-11-02T00:00:00+00:00,"
    '0.25,usd,1000,"gpt-5-nano, output",,proj_a,someone@example.com\r\n'
    "1793577600,1793664000,2026-11-02T00:00:00+00:00,2026-11-03T00:00:00+00:00,,,,,,,\r\n"
)


def test_the_dashboards_csv_is_read_with_its_empty_days() -> None:
    (found,) = rows(DASHBOARD, until=date(2026, 11, 3))
    assert ("gpt-5-nano", 750_000_000) == (found.model, found.amount_nano_usd)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_of_usage_by_day(delimiter: str) -> None:
    lines = [
        "\ufeffDate,Model,prompt_tokens,cached_prompt_tokens,completion_tokens,requests,project",
        "2026-11-01,gpt-4o,59200.0,5760.0,10646.0,10.0,proj_a",
        "2026-11-01,gpt-4o,800,0,354,1,proj_a",
    ]
    text = "\n".join(lines).replace(",", delimiter)
    (found,) = rows(text, price=lambda *_: 5)
    expected = Row(DAY, "gpt-4o", "proj_a", "", 11, 60_000, 5_760, 11_000, 5, priced=True)
    assert expected == found


def test_sums_are_fractions_whatever_the_context_of_decimals() -> None:
    many = [costs("0.000000000000000000000000000001")] * 3 + [costs("999999999.999999999")]
    report = together.parse("f", page(bucket(0, *many)))
    total = sum((line.amount_usd or Fraction(0)) for line in report.lines)
    assert Fraction(999_999_999_999_999_999, 10**9) + Fraction(3, 10**30) == total
