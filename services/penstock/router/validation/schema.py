"""JSON schemas that a request carries: those of its tools, and that of its answer's format."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeGuard

from penstock.router.validation.faults import shown
from penstock.router.validation.keywords import shape_fault
from penstock.router.validation.patterns import pattern_fault
from penstock.router.validation.values import values_in

SCHEMA_BYTES_MAX = 32 * 1024
"""Schemas of real tools are a few KiB."""

SCHEMA_VALUES_MAX = 16_384
"""Of all schemas of a request: each costs some microseconds of the event loop. A tool of ten
parameters has about forty.
"""

PATTERN_CHARACTERS_MAX = 32_768
"""Of all patterns of a request, for the same reason."""

SCHEMA_DEPTH_MAX = 64
"""Deeper nesting breaks recursive readers down the line."""

COUNT_MAX = 2**31 - 1
"""Of letters, items or properties: engines count in 32 bits, and a larger one comes round."""

SCHEMAS_KEPT = 512
"""Verdicts kept: an application sends the same schemas with each request."""


_BOUNDS = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minContains", "maxContains"),
    ("minimum", "maximum"),
)
_COUNTS = frozenset(name for pair in _BOUNDS[:4] for name in pair)


@dataclass(frozen=True, slots=True)
class _Verdict:
    fault: str | None
    pattern_characters: int = 0


class Schemas:
    """Those of one request. What they have together is bounded: the one that goes beyond is at
    fault, and of the rest none is read.
    """

    def __init__(self) -> None:
        self._values = 0
        self._pattern_characters = 0

    def fault_of(self, text: str) -> str | None:
        """What is wrong with the next schema's text; None: nothing, or it was not read."""
        if self._are_beyond():
            return None
        encoded = text.encode()
        if len(encoded) > SCHEMA_BYTES_MAX:
            return f"is {len(encoded)} bytes long; at most {SCHEMA_BYTES_MAX}, shorten the schema"
        self._values += values_in(encoded, SCHEMA_VALUES_MAX)
        verdict = _Verdict(None) if self._are_beyond() else _verdict(text)
        self._pattern_characters += verdict.pattern_characters
        if self._are_beyond():
            return (
                f"brings the request's schemas over {SCHEMA_VALUES_MAX} values, or over "
                f"{PATTERN_CHARACTERS_MAX} characters of patterns, in all; simplify them"
            )
        return verdict.fault

    def _are_beyond(self) -> bool:
        return self._values > SCHEMA_VALUES_MAX or self._pattern_characters > PATTERN_CHARACTERS_MAX


@lru_cache(maxsize=SCHEMAS_KEPT)
def _verdict(text: str) -> _Verdict:
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        return _Verdict(
            f"is no valid JSON: {error.msg} at character {error.pos}; send a JSON schema as text"
        )
    except (RecursionError, ValueError):
        return _Verdict(
            "is no valid JSON: nested too deeply or a number too long; simplify the schema"
        )
    if not isinstance(schema, dict):
        return _Verdict('is no JSON object; send a JSON schema, e.g. {"type": "object"}')
    patterns: list[str] = []
    if fault := _structural_fault(schema, patterns):
        return _Verdict(fault)
    if fault := shape_fault(schema):
        return _Verdict(f"is no valid JSON schema: {fault}; mend the schema")
    characters = sum(map(len, patterns))
    if characters <= PATTERN_CHARACTERS_MAX:
        for pattern in patterns:
            if fault := pattern_fault(pattern):
                return _Verdict(f"has a pattern {fault}", characters)
    return _Verdict(None, characters)


def _structural_fault(schema: dict[str, Any], patterns: list[str]) -> str | None:
    """Depth, references that point out of the schema (nothing is fetched for a request), and what
    makes an engine's grammar compiler run for ever, which would stop it for everybody.
    """
    level: list[Any] = [schema]
    for _ in range(SCHEMA_DEPTH_MAX):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                reference = node.get("$ref")
                if isinstance(reference, str) and not reference.startswith("#"):
                    return f"refers to {reference[:100]!r}; only references within it (#/…) work"
                if fault := _bounds_fault(node):
                    return fault
                patterns += _patterns(node)
                below += node.values()
            elif isinstance(node, list):
                below += node
        level = [node for node in below if isinstance(node, dict | list)]
        if not level:
            return None
    return f"is nested deeper than {SCHEMA_DEPTH_MAX} levels; flatten the schema"


def _bounds_fault(node: Mapping[str, Any]) -> str | None:
    for low, high in _BOUNDS:
        if low not in node and high not in node:
            continue
        least, most = node.get(low), node.get(high)
        for name, value in ((low, least), (high, most)):
            if name in _COUNTS and _is_number(value) and value > COUNT_MAX:
                return f"has a {name} over {COUNT_MAX}; lower it, or leave it out"
        if _is_number(least) and _is_number(most) and least > most:
            told = f"its {low} is {shown(least)}, its {high} is {shown(most)}"
            return f"allows nothing: {told}; mend the two"
    if node.get("enum") == []:
        return "allows nothing: it has an empty enum; name a value, or leave it out"
    return None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _patterns(node: Mapping[str, Any]) -> list[str]:
    pattern, by_pattern = node.get("pattern"), node.get("patternProperties")
    found = [pattern] if isinstance(pattern, str) else []
    return found + list(by_pattern) if isinstance(by_pattern, dict) else found
