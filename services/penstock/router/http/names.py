"""Names of fields: from the proto's path and the parser's location to OpenAI's own names.

Whatever finds a fault, validation, the plan or a back end, names the proto's path. Here alone that
becomes what a client of OpenAI's API knows.
"""

import re
from collections.abc import Callable, Sequence

from penstock.router.validation.faults import shown

_CHAT = (
    (r"^input\.(tools\[\d+\])\.(name|description|strict)", r"\1.function.\2"),
    (r"^input\.(tools\[\d+\])\.parameters_json", r"\1.function.parameters"),
    (r"\.(tool_calls\[\d+\])\.name$", r".\1.function.name"),
    (r"^input\.tool_choice\.function_name", "tool_choice.function.name"),
    (r"^input\.tool_choice\.mode", "tool_choice"),
    (r"^input\.response_format\.kind", "response_format.type"),
    (r"^input\.response_format\.schema_json", "response_format.json_schema.schema"),
    (r"^input\.response_format\.schema_", "response_format.json_schema."),
    (r"^data_class", "x-penstock-data-class"),
    (r"^cache_control\.max_age_seconds", "cache-control: max-age"),
    (r"^client_request_id", "x-client-request-id"),
    (r"^input\.", ""),
)
_WORD = re.compile(r"[\w$-]{1,64}", re.ASCII)
_RULES = tuple((re.compile(pattern), text) for pattern, text in _CHAT)


def to_openai(renamed: dict[str, str]) -> Callable[[str], str]:
    """A renamer; `renamed` says which of two names the client chose, e.g. for max_tokens."""

    def rename(path: str) -> str:
        for pattern, text in _RULES:
            path = pattern.sub(text, path)
        return renamed.get(path, path)

    return rename


def of_location(location: Sequence[str | int]) -> str:
    """The parser's location as a path: `messages[0].content`; its own tags are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<") and part != "[key]":
            name = of_key(part)
            path += f".{name}" if path else name
    return path or "(body)"


def of_key(key: str) -> str:
    """A key that a client made up, quoted and cut where it is no plain word."""
    return key if _WORD.fullmatch(key) else shown(key)
