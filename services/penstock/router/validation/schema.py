"""JSON schemas that a request carries: those of its tools, and that of its answer's format."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeGuard

import jsonschema
from jsonschema.exceptions import SchemaError

SCHEMA_BYTES_MAX = 32 * 1024
"""Checking takes time on the event loop; schemas of real tools are a few KiB."""

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

_BRACES = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{([^}]*)\}?", re.DOTALL)
"""Those of a pattern that repeat: not escaped, and in no class of characters."""
_REPEAT = re.compile(r"([0-9]{0,9})(?:,([0-9]{0,9}))?", re.ASCII)


def fault_of(text: str) -> str | None:
    """What is wrong with a JSON schema's text; None: nothing."""
    size = len(text.encode())
    if size > SCHEMA_BYTES_MAX:
        return f"is {size} bytes long; at most {SCHEMA_BYTES_MAX}, shorten the schema"
    return _fault_of_short(text)


@lru_cache(maxsize=SCHEMAS_KEPT)
def _fault_of_short(text: str) -> str | None:
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        return f"is no valid JSON: {error.msg} at character {error.pos}; send a JSON schema as text"
    except (RecursionError, ValueError):
        return "is no valid JSON: nested too deeply or a number too long; simplify the schema"
    if not isinstance(schema, dict):
        return 'is no JSON object; send a JSON schema, e.g. {"type": "object"}'
    structural = _structural_fault(schema)
    if structural:
        return structural
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(str(p) for p in error.absolute_path) or "(root)"
        return f"is no valid JSON schema: {error.message[:200]} at {where}; mend the schema"
    except (OverflowError, RecursionError):
        return "has a pattern that is nested too deeply or repeats too often; simplify it"
    return None


def _structural_fault(schema: dict[str, Any]) -> str | None:
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
                if fault := _bounds_fault(node) or _pattern_fault(node.get("pattern")):
                    return fault
                below += node.values()
            elif isinstance(node, list):
                below += node
        level = [node for node in below if isinstance(node, dict | list)]
        if not level:
            return None
    return f"is nested deeper than {SCHEMA_DEPTH_MAX} levels; flatten the schema"


def _bounds_fault(node: Mapping[str, Any]) -> str | None:
    for low, high in _BOUNDS:
        least, most = node.get(low), node.get(high)
        for name, value in ((low, least), (high, most)):
            if name in _COUNTS and _is_number(value) and value > COUNT_MAX:
                return f"has a {name} over {COUNT_MAX}; lower it, or leave it out"
        if _is_number(least) and _is_number(most) and least > most:
            return f"allows nothing: its {low} is {least}, its {high} is {most}; mend the two"
    return None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pattern_fault(pattern: Any) -> str | None:
    """Braces that are no repetition: some engines read them as text, others as one all the same."""
    for found in _BRACES.finditer(pattern) if isinstance(pattern, str) else ():
        if found[1] is None:
            continue
        repeat = _REPEAT.fullmatch(found[1])
        least, most = (repeat[1], repeat[2]) if repeat else ("", None)
        if not (least or most) or (least and most and int(least) > int(most)):
            return (
                f"has a pattern with {found[0][:32]!r}, which is no repetition such as {{2,5}}; "
                "write \\{ where the brace itself is meant"
            )
    return None
