"""What the engines share in reading a `ChatInput`: roles, texts, JSON, refusals. Pure."""

import json
from typing import Any

from penstock.core.errors import FieldViolation, InvalidRequest
from penstock.type.v1 import chat_pb2

Json = dict[str, Any]

SCHEMA_FIELD = "input.response_format.schema_json"

SCHEMA_WORDS = ("schema", "grammar")
"""Engines compile a schema to a grammar; a refusal that names either is about it."""

_ROLES = {
    chat_pb2.ROLE_SYSTEM: "system",
    # Chat templates know no developer: it is the same voice.
    chat_pb2.ROLE_DEVELOPER: "system",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
}


def refused(field: str, description: str) -> InvalidRequest:
    return InvalidRequest.of([FieldViolation(field, description)])


def refused_by(engine: str, chat: chat_pb2.ChatInput, message: str) -> InvalidRequest:
    """An engine's own refusal, blamed on the field that its text is about, where it tells."""
    text = f"{engine} refuses it: {message}"
    if not any(word in message.lower() for word in SCHEMA_WORDS):
        return InvalidRequest(text)
    if chat.response_format.kind == chat_pb2.ResponseFormat.KIND_JSON_SCHEMA:
        return refused(SCHEMA_FIELD, text)
    offered = list(offered_tools(chat))
    if not offered:
        return InvalidRequest(text)
    # Of several an engine makes one grammar.
    return refused(parameters_field(offered[0]) if len(offered) == 1 else "input.tools", text)


def refuse_unsupported(chat: chat_pb2.ChatInput) -> None:
    """Raises InvalidRequest for what no engine here does, and would otherwise pass over."""
    if chat.HasField("reasoning_effort"):
        raise refused("input.reasoning_effort", "this model does not reason: leave it out")
    if not chat.HasField("prompt"):
        return
    if chat.tools:
        raise refused("input.tools", "need messages: a raw prompt cannot show them")
    if chat.response_format.kind not in (
        chat_pb2.ResponseFormat.KIND_UNSPECIFIED,
        chat_pb2.ResponseFormat.KIND_TEXT,
    ):
        raise refused("input.response_format", "needs messages: a raw prompt has no format")


def parameters_field(index: int) -> str:
    """Where the schema of a tool's arguments stands."""
    return f"input.tools[{index}].parameters_json"


def offered_tools(chat: chat_pb2.ChatInput) -> dict[int, chat_pb2.Tool]:
    """The tools that the model may call in this request, by their place in it.

    Raises:
        InvalidRequest: the function that must be called is not among the tools.
    """
    if chat.tool_choice.mode == chat_pb2.ToolChoice.MODE_NONE:
        return {}
    name = chat.tool_choice.function_name
    found = {i: tool for i, tool in enumerate(chat.tools) if name in ("", tool.name)}
    if name and not found:
        raise refused("input.tool_choice.function_name", f"{name!r} is not among input.tools")
    return found


def is_call_forced(chat: chat_pb2.ChatInput) -> bool:
    choice = chat.tool_choice
    return bool(choice.function_name) or choice.mode == chat_pb2.ToolChoice.MODE_REQUIRED


def role_of(message: chat_pb2.Message, index: int) -> str:
    """The role's name in chat templates.

    Raises:
        InvalidRequest: it is none that is known.
    """
    if message.role not in _ROLES:
        raise refused(f"input.messages[{index}].role", f"{message.role} is no known role")
    return _ROLES[message.role]


def text_of(message: chat_pb2.Message, index: int) -> str:
    """Chat templates want one text: parts follow one another as they do at OpenAI.

    Raises:
        InvalidRequest: a part is an image.
    """
    texts = []
    for at, part in enumerate(message.content):
        if part.HasField("image_url"):
            raise refused(
                f"input.messages[{index}].content[{at}].image_url", "this model takes text only"
            )
        texts.append(part.text or part.refusal)
    return "".join(texts)


def json_object(text: str, field: str) -> Json:
    """The object that `text` holds; the schema of an empty object where it is empty.

    Raises:
        InvalidRequest: it is no JSON object.
    """
    if not text:
        return {"type": "object", "properties": {}}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise refused(field, f"is no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise refused(field, "must be a JSON object")
    return value
