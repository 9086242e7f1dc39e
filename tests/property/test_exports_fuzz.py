"""Whatever a file holds, it is read, or its faults are told; nothing else comes of it."""

import json
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cli.reports import together
from penstock.cli.reports.faults import FaultyReport
from support.exports import DAY, bucket, costs, page, usage

GOOD = (
    page(bucket(0, usage(), usage(model="o3")), bucket(1)),
    page(bucket(0, costs("1.25"), costs("3e-7")), bucket(1, costs("0")), next_page="A"),
    "date,model,amount_usd,currency\n2026-11-01,gpt-4o,1.5,usd\n2026-11-02,o3,0,usd\n",
    (
        "start_time;end_time;model;input_tokens;output_tokens;requests\n"
        "1793491200;1793577600;o3;1;2;3\n"
    ),
)
PIECES = [
    "", '"', "{", "}", "[", "]", ",", ";", "\n", "\r", "\0", "-", "1e400", "1e" + "9" * 50,
    "NaN", "-Infinity", "null", "true", "9" * 5_000, "٣", "\ud7ff", "\ufeff",
    "1_000", "0x10", "1793491200", "{}", "[]", "page", "\\ud800",
]  # fmt: skip
edits = st.lists(
    st.tuples(st.integers(0, 2_000), st.integers(0, 12), st.sampled_from(PIECES)), max_size=4
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["object", "data", "results", "start_time", "amount", "value", "model"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def read(text: str) -> None:
    with suppress(FaultyReport):
        report = together.parse("f", text)
        together.span([report])
        together.rows([report], since=DAY, until=DAY.replace(day=3), price=lambda *_: 1)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(GOOD), edits)
def test_a_mangled_file_is_read_or_its_faults_are_told(
    text: str, changes: list[tuple[int, int, str]]
) -> None:
    for place, length, piece in changes:
        start = place % (len(text) + 1)
        text = text[:start] + piece + text[start + length :]
    read(text)


@settings(deadline=None, max_examples=300)
@given(values, st.sampled_from(["whole", "data", "bucket", "result"]))
def test_any_json_in_any_place_is_read_or_its_faults_are_told(value: object, place: str) -> None:
    whole = {
        "whole": value,
        "data": {"object": "page", "data": value},
        "bucket": {"object": "page", "data": [bucket(0) | {"results": value}]},
        "result": {"object": "page", "data": [bucket(0, costs() | {"amount": value})]},
    }
    read(json.dumps(whole[place]))
