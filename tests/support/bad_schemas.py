"""Texts that are no JSON schema, or none that may be sent: (name, text, words of the fault)."""

import json
from typing import Any

DEEP = '{"not":' * 80 + "{}" + "}" * 80

BROKEN_PATTERNS = (
    "^a{5, 2}$",
    "^a{5,1x}$",
    r"^\{a{7, 5}$",
    "^a{}$",
    "^a{99999999999999999999}$",
    "(" * 5_000 + ")" * 5_000,
    "^(a$",
    "^a)$",
    "^)(a",
    "^[a$",
    "^*a$",
    "^a**$",
    "(a|*)",
    "^[z-a]$",
    r"[\u005a-\x41]",
    "(?i)a",
    "a\\",
)


def pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": text}


BAD_SCHEMAS: list[tuple[str, str, str]] = [
    ("no JSON", "{]", "no valid JSON"),
    ("a list", "[]", "no JSON object"),
    ("an unknown type", '{"type": "nothing"}', "no valid JSON schema: should be 'array'"),
    ("a type that is no word", '{"type": 5}', "no valid JSON schema"),
    ("a fault far down", '{"properties": {"a": {"anyOf": [{"type": 5}]}}}', "/a/anyOf/0/type"),
    ("a word twice", '{"required": ["a", "a"]}', "the same word twice at required"),
    ("far reference", '{"$ref": "https://x/y"}', "only references within it"),
    ("deep", DEEP, "nested deeper"),
    ("absurdly deep", "[" * 10_000, "no valid JSON"),
    ("long", json.dumps({"description": "a" * 40_000}), "at most 32768"),
    ("full", json.dumps({"allOf": [{}] * 10_000}, separators=(",", ":")), "over 16384 values"),
    ("an empty enum", '{"enum": []}', "allows nothing"),
    *(
        (f"{low} over {high}", f'{{"anyOf": [{{"{low}": 5, "{high}": 2}}]}}', "allows nothing")
        for low, high in (
            ("minLength", "maxLength"),
            ("minItems", "maxItems"),
            ("minProperties", "maxProperties"),
            ("minimum", "maximum"),
        )
    ),
    (
        "a count beyond 32 bits",
        '{"type": "string", "minLength": 5, "maxLength": 4294967298}',
        "over 2147483647",
    ),
    *((f"the pattern {p[:20]}", json.dumps(pattern(p)), "a pattern") for p in BROKEN_PATTERNS),
    (
        "a name's pattern that overflows",
        '{"patternProperties": {"a{99999999999999999999}": {}}}',
        "is no repetition",
    ),
]
