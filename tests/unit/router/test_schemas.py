"""Schemas made to keep the router busy: what those of one request cost is bounded."""

import json
from typing import Any

import pytest

from penstock.router.validation import schema
from penstock.router.validation.patterns import pattern_fault
from penstock.router.validation.schema import Schemas
from support.work import calls_of

CALLS_PER_VALUE_MAX = 8
CALLS_PER_CHARACTER_MAX = 3
CALLS_MAX_UNREAD = 20

FILLED = {
    "empty ones": {"allOf": [{}] * 8_000},
    "properties": {"properties": {f"p{n}": {} for n in range(2_500)}},
    "bounds": {"allOf": [{"minItems": 1}] * 1_900},
    "wrong ones": {"allOf": [5] * 15_000},
    "wrong properties": {"properties": {f"p{n}": 5 for n in range(2_500)}},
    "constants": {"enum": [0] * 15_000},
    "patterns": {"allOf": [{"pattern": "a"}] * 1_800},
    "names": {"patternProperties": {f"p{n}": True for n in range(2_500)}},
}


def text_of(found: dict[str, Any]) -> str:
    text = json.dumps(found, separators=(",", ":"))
    assert len(text) <= schema.SCHEMA_BYTES_MAX
    return text


@pytest.mark.parametrize("found", FILLED.values(), ids=FILLED.keys())
def test_schema_costs_little_for_each_value(found: dict[str, Any]) -> None:
    text = text_of(found)
    calls = calls_of(lambda: Schemas().fault_of(text))
    assert calls < CALLS_PER_VALUE_MAX * schema.SCHEMA_VALUES_MAX


@pytest.mark.parametrize("found", FILLED.values(), ids=FILLED.keys())
def test_many_schemas_cost_what_one_request_may_have(found: dict[str, Any]) -> None:
    texts = [text_of(found | {"$comment": f"{n} of many"}) for n in range(64)]
    schemas = Schemas()
    faults: list[str | None] = []
    calls = calls_of(lambda: faults.extend(map(schemas.fault_of, texts)))
    assert calls < 2 * CALLS_PER_VALUE_MAX * schema.SCHEMA_VALUES_MAX
    assert 1 == len([fault for fault in faults if fault and "in all" in fault])


def test_schema_of_too_many_values_is_not_read() -> None:
    text = text_of({"allOf": [{}] * 10_000})
    assert calls_of(lambda: Schemas().fault_of(text)) < CALLS_MAX_UNREAD


@pytest.mark.parametrize(
    "unit", ["a", ".", "()", "(a+)+", r"\\", "[a-z]", "[\0-\uffff]", "a{1,2}", "a-b", "|", "(?=a)"]
)
def test_pattern_costs_little_for_each_character(unit: str) -> None:
    pattern = unit * (schema.PATTERN_CHARACTERS_MAX // len(unit))
    for found in (pattern, f"[{pattern}]", f"({pattern}"):
        assert calls_of(lambda found=found: pattern_fault(found)) < (
            CALLS_PER_CHARACTER_MAX * len(found)
        )


def test_patterns_of_one_request_are_bounded_together() -> None:
    schemas = Schemas()
    texts = [text_of({"pattern": "()" * 8_000, "$comment": str(n)}) for n in range(64)]
    faults: list[str | None] = []
    calls = calls_of(lambda: faults.extend(map(schemas.fault_of, texts)))
    assert calls < 2 * CALLS_PER_CHARACTER_MAX * schema.PATTERN_CHARACTERS_MAX
    assert [2] == [n for n, fault in enumerate(faults) if fault]


def test_schema_of_500_properties_is_legal() -> None:
    properties = {
        f"f{n}": {"type": ["string", "null"], "description": "d", "maxLength": 9}
        for n in range(250)
    } | {f"c{n}": {"type": "integer", "minimum": 0} for n in range(250)}
    found = {"type": "object", "properties": properties, "required": list(properties)}
    assert Schemas().fault_of(text_of(found)) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "^.*$",
        r"^[\w.+-]+@[\w-]+\.[\w.-]+$",
        r"^\d{4}-\d{2}-\d{2}$",
        r"^(?:[a-z]+|b)*?(?=x)(?!y)(?<=z)(?<name>a)\k<name>$",
        r"[^\]\\-]{2,}|[]|[^]|}|]",
        r"[\x41-\u005a\d-z]",
        "a??b*?c{1,2}?",
        "(" * 64 + ")" * 64,
    ],
)
def test_patterns_that_work_are_taken(pattern: str) -> None:
    assert pattern_fault(pattern) is None
