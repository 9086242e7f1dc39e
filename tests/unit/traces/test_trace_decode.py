from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from penstock.traces.decode import ATTRIBUTES_MAX, ITEMS_MAX, TEXT_CHARS_MAX, spans
from support.spans import message


def pair(key, **value):
    return KeyValue(key=key, value=AnyValue(**value))


def test_values_keep_their_types_and_big_integers_stay_exact():
    cost = 2**62 + 1
    listed = ArrayValue(values=[AnyValue(string_value="stop"), AnyValue(string_value="length")])
    (span,) = spans(
        message(
            attributes=[
                pair("cost", int_value=cost), pair("amount", double_value=0.5),
                pair("ok", bool_value=True), pair("reasons", array_value=listed),
            ]
        )
    )  # fmt: skip

    assert {
        "cost": cost,
        "amount": 0.5,
        "ok": True,
        "reasons": ["stop", "length"],
    } == span.attributes
    assert "penstock-router" == span.service


def test_spans_without_valid_ids_are_left_out():
    assert [] == list(spans(message(trace_id=b"short")))
    assert [] == list(spans(message(span_id=b"")))


def test_what_comes_is_cut_to_the_limits():
    (span,) = spans(
        message(
            name="n" * 100_000,
            attributes=[pair(f"k{i}", string_value="v") for i in range(500)],
            events=[trace_pb2.Span.Event(name="e") for _ in range(500)],
        )
    )
    (long,) = spans(message(attributes=[pair("k", string_value="v" * 100_000)]))

    assert TEXT_CHARS_MAX == len(span.name) == len(long.attributes["k"])
    assert ATTRIBUTES_MAX == len(span.attributes)
    assert ITEMS_MAX == len(span.events)


def test_absurd_times_and_kinds_do_no_harm():
    (span,) = spans(message(start_time_unix_nano=2**64 - 1, end_time_unix_nano=5, kind=99))

    assert 0 == span.duration_ms
    assert "unspecified" == span.kind


def test_an_error_status_is_a_failure():
    status = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message="BUDGET_EXCEEDED")
    (span,) = spans(message(status=status))

    assert span.failed
    assert "BUDGET_EXCEEDED" == span.status_message
