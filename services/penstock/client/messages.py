"""Messages and tools in one line each."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.type.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ContentPart,
    ImageUrl,
    Message,
    Tool,
    ToolCall,
)


def system(text: str) -> Message:
    return Message(role=ROLE_SYSTEM, content=[ContentPart(text=text)])


def developer(text: str) -> Message:
    return Message(role=ROLE_DEVELOPER, content=[ContentPart(text=text)])


def user(*parts: str | ContentPart, name: str = "") -> Message:
    """A user's message: texts, and images made by `image`."""
    content = [ContentPart(text=part) if isinstance(part, str) else part for part in parts]
    return Message(role=ROLE_USER, content=content, name=name)


def assistant(text: str = "", *, tool_calls: Sequence[ToolCall] = ()) -> Message:
    """An earlier answer, sent back as history."""
    content = [ContentPart(text=text)] if text else []
    return Message(role=ROLE_ASSISTANT, content=content, tool_calls=tool_calls)


def tool(tool_call_id: str, text: str) -> Message:
    """What a tool returned for a call of the assistant."""
    return Message(role=ROLE_TOOL, content=[ContentPart(text=text)], tool_call_id=tool_call_id)


def image(url: str, *, detail: str = "") -> ContentPart:
    """An image by its https: or data: URL; `detail` is "low", "high" or "auto"."""
    return ContentPart(image_url=ImageUrl(url=url, detail=detail))


def function(name: str, description: str = "", parameters: Mapping[str, Any] | None = None) -> Tool:
    """A tool; `parameters` is a JSON schema."""
    text = "" if parameters is None else json.dumps(parameters)
    return Tool(name=name, description=description, parameters_json=text)
