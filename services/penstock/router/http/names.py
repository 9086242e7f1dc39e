"""Names of fields: from the proto's path and the parser's location to OpenAI's own names."""

import re
from collections.abc import Callable, Sequence

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
            path += f".{part}" if path else part
    return path or "(body)"
