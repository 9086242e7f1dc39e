"""JSON schemas that a request carries: those of its tools, and that of its answer's format."""

import json
from functools import lru_cache
from typing import Any

import jsonschema
from jsonschema.exceptions import SchemaError

SCHEMA_BYTES_MAX = 32 * 1024
"""Checking takes time on the event loop; schemas of real tools are a few KiB."""

SCHEMA_DEPTH_MAX = 64
"""Deeper nesting breaks recursive readers down the line."""

SCHEMAS_KEPT = 512
"""Verdicts kept: an application sends the same schemas with each request."""


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
    return None


def _structural_fault(schema: dict[str, Any]) -> str | None:
    """Depth, and references that point out of the schema: nothing is fetched for a request."""
    level: list[Any] = [schema]
    for _ in range(SCHEMA_DEPTH_MAX):
        below: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                reference = node.get("$ref")
                if isinstance(reference, str) and not reference.startswith("#"):
                    return f"refers to {reference[:100]!r}; only references within it (#/…) work"
                below += node.values()
            elif isinstance(node, list):
                below += node
        level = [node for node in below if isinstance(node, dict | list)]
        if not level:
            return None
    return f"is nested deeper than {SCHEMA_DEPTH_MAX} levels; flatten the schema"
