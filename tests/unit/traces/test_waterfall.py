from io import StringIO

import pytest
from rich.console import Console

from penstock.core import semconv
from penstock.traces import render
from penstock.traces.model import Trace
from penstock.traces.waterfall import ROWS_MAX, bar
from support.spans import event, request_span, span


def shown(trace, width=140, *, narrow=False):
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(render(trace, narrow=narrow))
    return console.file.getvalue()


def row(text, name):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
    return line


TRACE = Trace.of(
    f"{1:032x}",
    [
        span(1, 3, 2, name="quota reserve", service="penstock-quota"),
        span(
            1, 2, 1, name="attempt openai", end_unix_ns=90_000_000,
            attributes={
                semconv.REASON: "spill_full", semconv.ATTEMPT_COST_NANO_USD: 1_500_000,
                semconv.INPUT_TOKENS: 12, semconv.OUTPUT_TOKENS: 34, semconv.ESTIMATED: True,
            },
        ),
        request_span(
            1, 1, "req_1", name="chat auto", end_unix_ns=101_000_000,
            attributes={
                semconv.PROVIDER: "openai", semconv.RESPONSE_MODEL: "gpt-4o-mini",
                semconv.REASON: "spill_full", semconv.CACHE: "miss",
                semconv.COST_NANO_USD: 1_500_000, semconv.BASELINE_COST_NANO_USD: 2_000_000_001,
            },
        ),
    ],
)  # fmt: skip


def test_it_says_what_answered_why_and_what_it_cost():
    text = shown(TRACE)

    assert "req_1  chat auto  100 ms" in text
    assert "answered by openai/gpt-4o-mini · reason spill_full · cache miss" in text
    assert "cost 0.0015 USD (1500000 nano-USD)" in text
    assert "baseline 2.000000001 USD" in text


def test_children_are_indented_below_their_parents_with_service_cost_and_tokens():
    lines = shown(TRACE).splitlines()
    names = [line for line in lines if "█" in line or "▏" in line]

    assert names[0].startswith(" chat auto")
    assert names[1].startswith("   attempt openai")
    assert names[2].startswith("     quota reserve")
    assert "12+34 tokens (estimated)" in names[1]
    assert "0.0015 USD" in names[1]
    assert " quota " in names[2]


def test_on_80_columns_names_times_and_amounts_are_whole():
    deepest = span(1, 4, 3, name="penstock.quota.v1.QuotaService/Settle", service="penstock-quota")
    text = shown(Trace.of(TRACE.trace_id, [*TRACE.spans, deepest]), 80, narrow=True)
    lines = text.splitlines()

    assert "…" not in text
    assert [] == [line for line in lines if len(line.rstrip()) > 80]
    assert "cost 0.0015 USD · baseline 2.000000001 USD" in text
    assert "service" not in text
    attempt = lines.index(row(text, "attempt openai"))
    assert "██ " in lines[attempt].replace("▊", " ")
    assert "88.0 ms   spill_full · 0.0015 USD" in lines[attempt]
    assert "12+34 tokens (estimated)" in lines[attempt + 1]
    assert "0.5 ms" in row(text, "QuotaService/Settle")


def test_a_failure_is_told_below():
    failed = span(1, 1, name="reserve", failed=True, status_message="BUDGET_EXCEEDED: spent")

    assert "reserve (router): BUDGET_EXCEEDED: spent" in shown(Trace.of("1", [failed]))


def test_events_of_a_request_that_is_one_span_are_rows():
    root = request_span(
        1, 1, "req_1", attributes={semconv.DETAILED: False},
        events=(event("cache lookup", 1_200_000, **{semconv.DURATION_MS: 0.2}),),
    )  # fmt: skip
    text = shown(Trace.of("1", [root]))

    assert "0.2 ms" in row(text, "· cache lookup")
    assert "one span and its events" in text


def test_text_from_outside_is_no_markup_and_does_not_break_it():
    text = shown(Trace.of("1", [request_span(1, 1, "req_[bold]", name="[red]x[/nope]")]))

    assert "[red]x[/nope]" in text


def test_spans_that_form_a_ring_end():
    ring = [span(1, 1, 2), span(1, 2, 1)]

    assert "trace" in shown(Trace.of("1", ring))


def test_many_spans_are_cut_and_say_so():
    text = shown(Trace.of("1", [span(1, n) for n in range(1, ROWS_MAX + 51)]))

    assert "… 50 more spans" in text


@pytest.mark.parametrize(
    ("began", "ended", "expected"),
    [
        (0, 100, "████"),
        (0, 50, "██  "),
        (50, 100, "  ██"),
        (0, 0, "▏   "),
        (100, 100, "   █"),
        (0, 25, "█   "),
    ],
)
def test_a_bar_shows_when_and_how_long(began, ended, expected):
    assert expected == bar(began, ended, 0, 100, cells=4)


def test_json_form_keeps_integers_exact():
    told = TRACE.to_dict()

    assert 2_000_000_001 == told["spans"][0]["attributes"][semconv.BASELINE_COST_NANO_USD]
