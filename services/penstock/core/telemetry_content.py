"""Prompts and answers as span attributes; only where the catalogue's `record_prompts` is on.

The JSON is that of the GenAI conventions (`gen_ai.input.messages`, `gen_ai.output.messages`): a
list of `{"role", "parts": [{"type": "text", "content"}, …], "finish_reason"}`.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from penstock.core import semconv
from penstock.core.assemble import finish_word
from penstock.core.semconv import Attributes
from penstock.type.v1.chat_pb2 import ChatInput, Choice, ContentPart, Message, Role

PART_CHARS_MAX: Final = 8_192
"""Of one text; a longer one is cut, and says so."""

MESSAGES_MAX: Final = 64
"""The last ones; a longer history adds nothing that its first request did not record."""

_encode = msgspec.json.Encoder().encode


def prompt(chat: ChatInput, *, record_prompts: bool) -> Attributes:
    """`gen_ai.input.messages`; nothing where prompts are not recorded."""
    if not record_prompts:
        return {}
    if chat.HasField("prompt"):
        messages = [{"role": "user", "parts": [_text(chat.prompt)]}]
    else:
        messages = [_message(m) for m in chat.messages[-MESSAGES_MAX:]]
    return {semconv.INPUT_MESSAGES: _encode(messages).decode()}


def answer(choices: Iterable[Choice], *, record_prompts: bool) -> Attributes:
    """`gen_ai.output.messages`; nothing where prompts are not recorded."""
    if not record_prompts:
        return {}
    messages = [
        {**_message(c.message), "finish_reason": finish_word(c.finish_reason)} for c in choices
    ]
    return {semconv.OUTPUT_MESSAGES: _encode(messages).decode()}


def _message(message: Message) -> dict[str, Any]:
    parts = [_part(part) for part in message.content]
    parts += [
        {
            "type": "tool_call",
            "id": call.id,
            "name": call.name,
            "arguments": _cut(call.arguments_json),
        }
        for call in message.tool_calls
    ]
    return {"role": Role.Name(message.role).removeprefix("ROLE_").lower(), "parts": parts}


def _part(part: ContentPart) -> dict[str, Any]:
    kind = part.WhichOneof("part")
    if kind == "image_url":
        # A data URL is the image itself: its size is fact enough.
        url = part.image_url.url
        shown = f"data: URL of {len(url)} characters" if url.startswith("data:") else _cut(url)
        return {"type": "uri", "modality": "image", "uri": shown}
    return _text(part.refusal if kind == "refusal" else part.text)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "content": _cut(text)}


def _cut(text: str) -> str:
    if len(text) <= PART_CHARS_MAX:
        return text
    return f"{text[:PART_CHARS_MAX]}… ({len(text) - PART_CHARS_MAX} more characters)"
