"""What the engines share in reading a `ChatInput`: roles, texts, JSON, refusals. Pure."""

import json
from typing import Any

from penstock.core.errors import FieldViolation, InvalidRequest
from penstock.type.v1 import chat_pb2

Json = dict[str, Any]

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


def refuse_reasoning(chat: chat_pb2.ChatInput) -> None:
    """Raises InvalidRequest where a reasoning effort is asked of a model that does not reason."""
    if chat.HasField("reasoning_effort"):
        raise refused("input.reasoning_effort", "this model does not reason: leave it out")


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
