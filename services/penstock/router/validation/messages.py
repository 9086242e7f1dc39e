"""Messages and the raw prompt: roles, contents, tool calls and their answers."""

import binascii
import re

from penstock.core.catalogue import Limits
from penstock.router.validation.faults import Faults, shown
from penstock.type.v1.chat_pb2 import ChatInput, ContentPart, ImageUrl, Message, Role

ROLES = {
    Role.ROLE_SYSTEM: "system",
    Role.ROLE_DEVELOPER: "developer",
    Role.ROLE_USER: "user",
    Role.ROLE_ASSISTANT: "assistant",
    Role.ROLE_TOOL: "tool",
}
MESSAGES_ONLY = ("tools", "response_format", "reasoning_effort")
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
PARTICIPANT_NAME = re.compile(r"[^\s<|\\/>\x00-\x1f]{1,64}")
IMAGE_DATA_URL = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,")
IMAGE_DETAILS = ("", "auto", "low", "high")
TOOL_CALL_ID_CHARACTERS_MAX = 128
"""Providers' ids have about 30."""

PARTS_MAX = 256
"""Of one message; more is a client that splits text needlessly."""

TOOL_CALLS_MAX = 256
"""Of one message; models make a few."""

PIECES_MAX = 16_384
"""Parts and tool calls of all messages, beyond one for each: looking at them takes time on the
event loop.
"""


def check_prompt_or_messages(faults: Faults, chat: ChatInput, limits: Limits) -> None:
    has_prompt = chat.HasField("prompt")
    if has_prompt and chat.messages:
        faults.add("input.prompt", "is set together with messages; send one of the two")
    elif has_prompt:
        if not chat.prompt:
            faults.add("input.prompt", "is empty; send at least one character")
        _check_messages_only(faults, chat)
    elif not chat.messages:
        faults.add("input.messages", "is empty; send at least one message")
    if len(chat.messages) > limits.messages_max:
        faults.add(
            "input.messages",
            f"has {len(chat.messages)} messages; at most {limits.messages_max}, trim the history",
        )
        return
    pieces = sum(len(m.content) + len(m.tool_calls) for m in chat.messages) - len(chat.messages)
    if pieces > PIECES_MAX:
        faults.add(
            "input.messages",
            f"have {pieces} parts and tool calls beyond one each; at most {PIECES_MAX}, "
            "join the texts or trim the history",
        )
        return
    called: set[str] = set()
    for index, message in enumerate(chat.messages):
        if faults.are_too_many:
            return
        _check_message(faults, f"input.messages[{index}]", message, called)
        called.update(call.id for call in message.tool_calls)


def _check_messages_only(faults: Faults, chat: ChatInput) -> None:
    """Raw completions have no place for them: left out in silence, the answer would lack them."""
    given = {field.name for field, _ in chat.ListFields()}
    for name in MESSAGES_ONLY:
        if name in given:
            faults.add(
                f"input.{name}",
                "works with messages only, not with a raw prompt; send messages, or leave it out",
            )


def _check_message(faults: Faults, path: str, message: Message, called: set[str]) -> None:
    role = ROLES.get(message.role)
    if role is None:
        faults.add(
            f"{path}.role",
            f"{message.role} is no role; use system, developer, user, assistant or tool",
        )
        return
    if message.name and not PARTICIPANT_NAME.fullmatch(message.name):
        faults.add(
            f"{path}.name",
            f"{shown(message.name)} is not 1 to 64 characters without spaces and <|\\/>; change it",
        )
    if len(message.content) > PARTS_MAX:
        faults.add(f"{path}.content", f"has over {PARTS_MAX} parts; join the texts")
        return
    for index, part in enumerate(message.content):
        _check_part(faults, f"{path}.content[{index}]", part, role)
    _check_not_empty(faults, path, message, role)
    _check_tool_calls(faults, path, message, role)
    _check_tool_answer(faults, path, message, role, called)


def _check_not_empty(faults: Faults, path: str, message: Message, role: str) -> None:
    # A tool may have returned nothing, and an assistant that calls tools need not speak.
    if role == "tool" or (role == "assistant" and message.tool_calls):
        return
    if not any(p.text or p.refusal or p.HasField("image_url") for p in message.content):
        faults.add(f"{path}.content", "is empty; give it text, or leave the message out")


def _check_part(faults: Faults, path: str, part: ContentPart, role: str) -> None:
    kind = part.WhichOneof("part")
    if kind is None:
        faults.add(path, "has no content; set text or image_url")
    elif kind == "refusal" and role != "assistant":
        faults.add(f"{path}.refusal", "belongs to messages of the assistant only; send text")
    elif kind == "image_url":
        if role != "user":
            faults.add(f"{path}.image_url", f"images come from the user only, not from {role}")
        _check_image(faults, f"{path}.image_url", part.image_url)


def _check_image(faults: Faults, path: str, image: ImageUrl) -> None:
    if image.detail not in IMAGE_DETAILS:
        faults.add(f"{path}.detail", f"{shown(image.detail)} is none of low, high and auto")
    if image.url.startswith("https://"):
        return
    head = IMAGE_DATA_URL.match(image.url)
    if head is None:
        faults.add(
            f"{path}.url",
            f"{shown(image.url)} is neither https://… nor data:image/(png|jpeg|gif|webp);base64,…",
        )
        return
    try:
        binascii.a2b_base64(image.url[head.end() :].encode(), strict_mode=True)
    except (binascii.Error, ValueError):
        faults.add(f"{path}.url", "holds no valid base64; encode the image's bytes anew")


def _check_tool_calls(faults: Faults, path: str, message: Message, role: str) -> None:
    if message.tool_calls and role != "assistant":
        faults.add(f"{path}.tool_calls", f"belong to messages of the assistant only, not of {role}")
        return
    if len(message.tool_calls) > TOOL_CALLS_MAX:
        faults.add(f"{path}.tool_calls", f"are over {TOOL_CALLS_MAX}; trim the history")
        return
    for index, call in enumerate(message.tool_calls):
        if not 1 <= len(call.id) <= TOOL_CALL_ID_CHARACTERS_MAX:
            faults.add(
                f"{path}.tool_calls[{index}].id",
                f"is not 1 to {TOOL_CALL_ID_CHARACTERS_MAX} characters long; send the answer's own",
            )
        if not FUNCTION_NAME.fullmatch(call.name):
            faults.add(
                f"{path}.tool_calls[{index}].name",
                f"{shown(call.name)} is not 1 to 64 of [A-Za-z0-9_-]; name the called function",
            )


def _check_tool_answer(
    faults: Faults, path: str, message: Message, role: str, called: set[str]
) -> None:
    if role != "tool":
        if message.tool_call_id:
            faults.add(f"{path}.tool_call_id", f"belongs to messages of a tool only, not of {role}")
    elif not message.tool_call_id:
        faults.add(f"{path}.tool_call_id", "is empty; name the tool call that this answers")
    elif message.tool_call_id not in called:
        faults.add(
            f"{path}.tool_call_id",
            f"no earlier message of the assistant calls {shown(message.tool_call_id)}; "
            "send that message too",
        )
