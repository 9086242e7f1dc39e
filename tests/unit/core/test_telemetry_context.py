import pytest
from opentelemetry import trace

from penstock.core.telemetry_context import (
    current_traceparent,
    form,
    from_headers,
    from_metadata,
    is_sampled,
    parse,
    set_current,
    to_metadata,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
GOOD = f"00-{TRACE_ID}-{SPAN_ID}-01"


def test_a_traceparent_is_parsed_and_formed_to_the_same_text():
    context = parse(GOOD)

    assert context is not None
    assert context.is_remote
    assert GOOD == form(context.trace_id, context.span_id, sampled=context.trace_flags.sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        GOOD[:-1],
        GOOD.upper(),
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-0g",
        f" {GOOD}",
        f"{GOOD}\n",
        f"01-{TRACE_ID}-{SPAN_ID}-01-" + "x" * 1000,
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace(text):
    assert parse(text) is None


def test_a_later_version_may_have_more_fields():
    assert parse(f"01-{TRACE_ID}-{SPAN_ID}-01-more") == parse(GOOD)


@pytest.mark.parametrize(
    ("flags", "expected"), [("00", False), ("01", True), ("03", True), ("02", False)]
)
def test_the_sampled_flag_is_the_lowest_bit(flags, expected):
    text = f"00-{TRACE_ID}-{SPAN_ID}-{flags}"

    assert expected == is_sampled(text)
    assert expected == parse(text).trace_flags.sampled


def test_metadata_and_headers_carry_it_both_ways():
    assert (("traceparent", GOOD),) == to_metadata(GOOD)
    assert () == to_metadata("")
    assert GOOD == from_metadata([("authorization", "Bearer x"), *to_metadata(GOOD)])
    assert "" == from_metadata([("traceparent", "nonsense")])
    assert "" == from_metadata(None)
    assert GOOD == from_headers({"traceparent": f" {GOOD} "})
    assert "" == from_headers({})


async def test_the_current_one_is_that_of_the_call_or_of_opentelemetrys_span():
    assert "" == current_traceparent()
    set_current(GOOD)
    assert GOOD == current_traceparent()

    other = GOOD.replace("4bf", "5bf")
    with trace.use_span(trace.NonRecordingSpan(parse(other))):
        assert other == current_traceparent()
    assert GOOD == current_traceparent()
