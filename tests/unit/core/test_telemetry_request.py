import asyncio

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from penstock.core import semconv
from penstock.core.errors import BudgetExceeded, UpstreamFailed
from penstock.core.telemetry import Telemetry
from penstock.core.telemetry_context import is_sampled, parse
from penstock.core.telemetry_request import CHILDREN_MAX, EVENTS_MAX
from support.telemetry import recorded

CLIENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


def served(trace, cost_nano_usd=700, first_nano_usd=200):
    """A request with two attempts, of which the first failed and was charged."""
    with trace.child("cache lookup"):
        pass
    for index, cost in ((1, first_nano_usd), (2, cost_nano_usd - first_nano_usd)):
        with trace.child("chat m", {semconv.PROVIDER: "openai"}) as attempt:
            with attempt.child("reserve"):
                pass
            attempt.set(
                semconv.charged(cost_nano_usd=cost, prompt_tokens=10, completion_tokens=index)
            )
    trace.finish({semconv.COST_NANO_USD: cost_nano_usd})


def test_a_detailed_request_is_a_tree_of_spans():
    with recorded() as it:
        trace = it.telemetry.request("chat auto", {semconv.REQUEST_ID: "req_1"}, parent=CLIENT)
        served(trace)
        spans = it.spans()

    by_id = {span.context.span_id: span for span in spans}
    root = spans[-1]
    assert ["cache lookup", "reserve", "chat m", "reserve", "chat m", "chat auto"] == [
        span.name for span in spans
    ]
    assert {int(CLIENT.split("-")[1], 16)} == {span.context.trace_id for span in spans}
    assert int(CLIENT.split("-")[2], 16) == root.parent.span_id
    assert SpanKind.SERVER == root.kind
    attempt = spans[2]
    assert attempt is by_id[spans[1].parent.span_id]
    assert root is by_id[attempt.parent.span_id]


def test_above_the_rate_it_is_one_span_with_events():
    with recorded(detailed_per_second=0) as it:
        served(it.telemetry.request("chat auto"))
        (root,) = it.spans()

    assert ["cache lookup", "reserve", "chat m", "reserve", "chat m"] == [
        e.name for e in root.events
    ]
    assert root.attributes[semconv.DETAILED] is False


@pytest.mark.parametrize("rate", [0, 20])
def test_cost_summed_over_spans_is_the_same_detailed_or_not(rate):
    with recorded(detailed_per_second=rate) as it:
        trace = it.telemetry.request("chat auto")
        served(trace, cost_nano_usd=123_456_789_012_345_678, first_nano_usd=10**17)
        spans = it.spans()

    def total(key):
        return sum(span.attributes.get(key, 0) for span in spans)

    assert 123_456_789_012_345_678 == total(semconv.COST_NANO_USD)
    assert 20 == total(semconv.INPUT_TOKENS)
    assert 3 == total(semconv.OUTPUT_TOKENS)
    assert total(semconv.COST_AMOUNT) == pytest.approx(123_456_789.012345678)
    assert {"USD"} == {s.attributes.get(semconv.COST_CURRENCY, "USD") for s in spans}


def test_each_detailed_attempt_has_its_exact_cost():
    with recorded() as it:
        served(it.telemetry.request("chat auto"))
        costs = [s.attributes.get(semconv.ATTEMPT_COST_NANO_USD) for s in it.spans()]

    assert [None, None, 200, None, 500, None] == costs


def test_the_bucket_decides_and_refills():
    with recorded(detailed_per_second=2) as it:
        first = [it.telemetry.request("r").detailed for _ in range(4)]
        it.monotonic_seconds += 1
        second = [it.telemetry.request("r").detailed for _ in range(4)]

    assert [True, True, False, False] == first == second


def test_the_clients_sampled_flag_does_not_buy_child_spans():
    with recorded(detailed_per_second=0) as it:
        trace = it.telemetry.request("r", parent=CLIENT[:-2] + "01")

    assert not trace.detailed
    assert not is_sampled(trace.traceparent)


def test_what_goes_downstream_names_the_childs_span_and_the_decision():
    with recorded() as it:
        trace = it.telemetry.request("r", parent=CLIENT)
        with trace.child("reserve") as child:
            sent = child.traceparent
        trace.finish()
        span = it.by_name()["reserve"]

    assert is_sampled(sent)
    assert (span.context.trace_id, span.context.span_id) == (
        parse(sent).trace_id,
        parse(sent).span_id,
    )


def test_an_error_makes_a_request_detailed_after_all():
    with recorded(detailed_per_second=0) as it:
        trace = it.telemetry.request("r")
        error = BudgetExceeded("team 'red' has spent its month")
        with pytest.raises(BudgetExceeded), trace.child("reserve"):
            raise error
        trace.finish(error=error)
        spans = it.by_name()

    assert StatusCode.ERROR == spans["reserve"].status.status_code
    assert "BUDGET_EXCEEDED" == spans["r"].attributes[semconv.ERROR_TYPE]
    assert "BUDGET_EXCEEDED: team 'red' has spent its month" == spans["r"].status.description


def test_an_outage_does_not_become_a_storm_of_spans():
    with recorded(detailed_per_second=0, notable_per_second=3) as it:
        for _ in range(10):
            trace = it.telemetry.request("r")
            with trace.child("reserve"):
                pass
            trace.finish(error=BudgetExceeded("spent"))
        names = [span.name for span in it.spans()]

    assert (10, 3) == (names.count("r"), names.count("reserve"))


def test_a_spill_is_detailed_from_then_on_also_downstream():
    with recorded(detailed_per_second=0) as it:
        trace = it.telemetry.request("r")
        with trace.child("first") as child:
            before = child.traceparent
        trace.detail()
        with trace.child("second") as child:
            after = child.traceparent
        trace.finish()
        spans = it.by_name()

    assert (False, True) == (is_sampled(before), is_sampled(after))
    assert {"first", "second", "r"} == set(spans)


def test_a_slow_request_is_detailed():
    with recorded(detailed_per_second=0, slow_seconds=5) as it:
        trace = it.telemetry.request("r")
        with trace.child("attempt"):
            it.now_unix_ns += 5_000_000_000
        trace.finish()

        assert {"attempt", "r"} == set(it.by_name())


def test_text_that_may_quote_a_prompt_is_not_recorded():
    with recorded() as it:
        trace = it.telemetry.request("r")
        with pytest.raises(UpstreamFailed), trace.child("attempt"):
            raise UpstreamFailed("400: cannot answer 'my secret diary'")
        with pytest.raises(ValueError), trace.child("parse"):
            raise ValueError("my secret diary")
        trace.finish()
        told = str([(s.attributes, s.status.description, s.events) for s in it.spans()])

    assert "UPSTREAM_FAILED" in told
    assert "diary" not in told


def test_an_attempt_that_carries_its_error_is_named_by_it():
    class AttemptFailed(Exception):
        error = UpstreamFailed("x", reason="UPSTREAM_TIMEOUT")

    with recorded() as it:
        trace = it.telemetry.request("r")
        with pytest.raises(AttemptFailed), trace.child("attempt"):
            raise AttemptFailed
        trace.finish()

        assert "UPSTREAM_TIMEOUT" == it.by_name()["attempt"].attributes[semconv.ERROR_TYPE]


async def test_a_client_that_hangs_up_is_cancelled_in_the_trace():
    with recorded() as it:
        trace = it.telemetry.request("r")

        async def flow():
            with trace.child("attempt"):
                yield 1
                yield 2

        generator = flow()
        await anext(generator)
        await generator.aclose()
        trace.finish(error=asyncio.CancelledError())
        spans = it.by_name()

    assert "CANCELLED" == spans["attempt"].attributes[semconv.ERROR_TYPE]
    assert "CANCELLED" == spans["r"].attributes[semconv.ERROR_TYPE]


def test_a_step_that_ends_after_the_request_still_has_its_span():
    with recorded() as it:
        trace = it.telemetry.request("r")
        late = trace.child("settle")
        trace.finish()
        late.end()

        assert {"r", "settle"} == set(it.by_name())


def test_finish_and_end_count_once():
    with recorded() as it:
        trace = it.telemetry.request("r")
        with trace.child("a") as child:
            child.end()
        trace.finish({semconv.COST_NANO_USD: 5})
        trace.finish({semconv.COST_NANO_USD: 7})
        spans = it.by_name()

    assert 5 == spans["r"].attributes[semconv.COST_NANO_USD]


def test_children_and_events_are_bounded():
    with recorded() as it:
        trace = it.telemetry.request("r")
        for _ in range(CHILDREN_MAX + 10):
            with trace.child("loop"):
                pass
        for _ in range(EVENTS_MAX + 10):
            trace.event("e")
        trace.finish()
        spans = it.spans()

    assert CHILDREN_MAX + 1 == len(spans)
    assert EVENTS_MAX == len(spans[-1].events)


def test_without_an_exporter_ids_work_and_nothing_is_kept():
    telemetry = Telemetry("router")
    trace = telemetry.request("r", parent=CLIENT)
    with trace.child("a") as child:
        assert not is_sampled(child.traceparent)
    trace.finish()

    assert CLIENT.split("-")[1] == trace.trace_id
    telemetry.shutdown()


def test_an_operation_gets_a_span_exactly_where_the_request_is_detailed():
    sampled, unsampled = CLIENT[:-2] + "01", CLIENT
    with recorded() as it:
        for traceparent in (sampled, unsampled, "", "nonsense", "x" * 54 + "1"):
            with it.telemetry.operation_span("quota reserve", traceparent) as span:
                span.set({semconv.RESERVATION_ID: "r1", semconv.REASON: None})
                if traceparent == unsampled:
                    assert unsampled == span.traceparent
        (only,) = it.spans()

    assert parse(sampled).span_id == only.parent.span_id
    assert {semconv.RESERVATION_ID: "r1"} == only.attributes
