"""What bounds and checks the JSON of a request, against plain readings of the same."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from penstock.router.validation.keywords import Keywords, shape_fault
from penstock.router.validation.values import values_in

METASCHEMA = Draft202012Validator(Draft202012Validator.META_SCHEMA)

leaves = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2.0, 1.5, 7])
    | st.sampled_from(["a", "string", "#", "a#b", "x y", ""])
    | st.lists(st.sampled_from(["a", "b", "integer", "null"]), max_size=2)
)
keywords = st.sampled_from(sorted(Keywords.__annotations__))


def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    schemas = st.dictionaries(keywords, inner, max_size=3)
    names = st.sampled_from(["p", "q"])
    return schemas | st.lists(inner | schemas, max_size=3) | st.dictionaries(names, inner | schemas)


anything = st.recursive(leaves, around, max_leaves=12)


@given(st.dictionaries(keywords, anything, max_size=3))
def test_keywords_take_what_the_metaschema_says(schema: dict[str, Any]) -> None:
    assert METASCHEMA.is_valid(schema) == (shape_fault(schema) is None)


def members(value: Any) -> int:
    """Of all lists and objects in it; an empty one counts as if it had one."""
    if not isinstance(value, list | dict):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return max(1, len(inner)) + sum(map(members, inner))


texts = st.text(st.sampled_from('a"\\{[,:]}é\n')) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@given(values, st.booleans(), st.sampled_from([None, 2]), st.integers(0, 50))
@example("\\", False, None, 0)
@example(['\\"', "\\\\", '\\\\"[,'], False, None, 50)
def test_values_are_counted_without_reading_them(
    value: Any, ascii_only: bool, indent: int | None, most: int
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    exact, told = members(value), values_in(text, most)
    assert told == exact if exact <= most else told > most


def begun(text: bytes) -> int:
    """Members that a reader has begun when it comes to the end of a text that is cut."""
    count, is_inside, is_escaped = 0, False, False
    for letter in text.decode():
        if not is_inside:
            is_inside = letter == '"'
            count += letter in ",[{"
        elif is_escaped:
            is_escaped = False
        else:
            is_escaped = letter == "\\"
            is_inside = letter != '"'
    return count


@given(values, st.floats(0, 1), st.binary())
def test_a_broken_text_has_no_fewer_than_a_reader_comes_to(
    value: Any, share: float, rest: bytes
) -> None:
    text = json.dumps(value).encode()
    start = text[: int(share * len(text))]
    assert values_in(start + rest, 10_000) >= begun(start)
