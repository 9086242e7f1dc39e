"""Stop sequences, found wherever the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.local.engines.stops import StopReader


def read(pieces: list[str], *sequences: str) -> tuple[list[str], bool]:
    reader = StopReader(sequences)
    last = len(pieces) - 1
    return [reader.feed(p, last=i == last) for i, p in enumerate(pieces)], reader.stopped


@pytest.mark.parametrize(
    ("pieces", "sequences", "expected"),
    [
        (["a", "b"], (), (["a", "b"], False)),
        (["one STOP two"], ("STOP",), (["one "], True)),
        (["one S", "TO", "P two", " more"], ("STOP",), (["one ", "", "", ""], True)),
        (["one S", "TO", "Y"], ("STOP",), (["one ", "", "STOY"], False)),
        (["one S", "TO"], ("STOP",), (["one ", "STO"], False)),
        (["aab"], ("ab",), (["a"], True)),
        (["aa", "b"], ("ab",), (["a", ""], True)),
        (["xyz"], ("z", "yz"), (["x"], True)),
        (["wa", "ve"], ("wall", "ve"), (["", "wa"], True)),
    ],
)
def test_text_goes_through_up_to_the_first_sequence(
    pieces: list[str], sequences: tuple[str, ...], expected: tuple[list[str], bool]
) -> None:
    assert expected == read(pieces, *sequences)


@given(
    st.lists(st.text("ab", max_size=12), min_size=1),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_what_comes_out_is_the_text_before_a_sequence(
    pieces: list[str], sequences: list[str]
) -> None:
    out, stopped = read(pieces, *sequences)
    told, text = "".join(out), "".join(pieces)
    assert text.startswith(told)
    assert all(s not in told for s in sequences)
    assert stopped is any(s in text for s in sequences)
    assert stopped or told == text
