"""What makes two requests the same: a canonical SHA-256 over everything that can change an answer.

The digest is over a canonical JSON structure that is built here, never over protobuf's bytes, whose
order is not promised. It is the same in every process and with every protobuf release. When the
meaning of a field changes, `VERSION` goes up, and no entry made before is found again.

Left out, since they change no answer: ids, end user, labels, deadline, cache control.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self

import msgspec

from penstock.router.request import Request
from penstock.type.v1.chat_pb2 import (
    ChatInput,
    ContentPart,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
)

VERSION = "penstock.fingerprint.v1"

SCHEMA_MEMO_BYTES_MAX = 16_384
"""Longer schema texts are parsed each time: the memo keeps its keys, and must stay small."""

_SCHEMA_MEMO_ENTRIES_MAX = 512

# Structured output comes in the order of a schema's properties, and what is written first guides
# what follows: their order is part of the question. No other order in a schema says anything.
_ORDERED_KEY = "properties"

_encode = msgspec.json.Encoder().encode


def fingerprint(request: Request, targets: Sequence[str] = ()) -> bytes:
    """32 bytes: equal exactly where a stored answer of the one request may answer the other.

    `targets`: what `model` stands for now, for this caller. An alias that is given other targets
    asks another question, and so does a key that may use fewer of them.
    """
    return hashlib.sha256(_encode(canonical(request, targets))).digest()


def shareable(chat: ChatInput) -> bool:
    """Whether identical requests in flight may share one generation: their samples are equal."""
    return chat.HasField("temperature") and chat.temperature == 0


def canonical(request: Request, targets: Sequence[str] = ()) -> list[Any]:
    """The structure that is hashed: names and plain values in a fixed order."""
    chat = request.input
    return [
        VERSION,
        ["org", request.principal.org_id],
        ["local_only", request.local_only],
        ["model", request.model],
        ["targets", list(targets)],
        ["messages", [_message(m) for m in chat.messages]],
        ["prompt", chat.prompt if chat.HasField("prompt") else None],
        ["tools", [_tool(t) for t in chat.tools]],
        ["tool_choice", _tool_choice(chat)],
        ["parallel_tool_calls", _optional(chat, "parallel_tool_calls")],
        ["response_format", _response_format(chat.response_format)],
        ["sampling", _sampling(chat)],
    ]


def _sampling(chat: ChatInput) -> list[Any]:
    """Absent temperature and top_p stay absent: their defaults are each model's own."""
    return [
        ["n", chat.n if chat.HasField("n") else 1],
        # Which of them is met first decides, not their order; an empty one never ends anything.
        ["stop", sorted({s for s in chat.stop if s})],
        ["logprobs", chat.logprobs],
        ["top_logprobs", chat.top_logprobs],
        ["seed", _optional(chat, "seed")],
        ["temperature", _number(_optional(chat, "temperature"))],
        ["top_p", _number(_optional(chat, "top_p"))],
        ["presence_penalty", _number(chat.presence_penalty)],
        ["frequency_penalty", _number(chat.frequency_penalty)],
        ["logit_bias", [[k, _number(v)] for k, v in sorted(chat.logit_bias.items()) if v != 0]],
        ["max_tokens", _optional(chat, "max_tokens")],
        ["reasoning_effort", chat.reasoning_effort],
    ]


def _message(message: Message) -> list[Any]:
    return [
        int(message.role),
        [_part(p) for p in message.content],
        message.name,
        [_tool_call(c) for c in message.tool_calls],
        message.tool_call_id,
    ]


def _part(part: ContentPart) -> list[Any]:
    match part.WhichOneof("part"):
        case "text":
            return ["text", part.text]
        case "image_url":
            return ["image_url", part.image_url.url, part.image_url.detail or "auto"]
        case "refusal":
            return ["refusal", part.refusal]
        case _:
            return ["empty"]


def _tool_call(call: ToolCall) -> list[Any]:
    # The arguments are history that the model reads as text: every byte of them counts.
    return [call.id, call.name, call.arguments_json]


def _tool(tool: Tool) -> list[Any]:
    return [tool.name, tool.description, schema_digest(tool.parameters_json), tool.strict]


def _tool_choice(chat: ChatInput) -> list[Any]:
    choice = chat.tool_choice
    if choice.WhichOneof("choice") == "function_name":
        return ["function", choice.function_name]
    mode = choice.mode
    if mode == ToolChoice.MODE_UNSPECIFIED:
        mode = ToolChoice.MODE_AUTO if chat.tools else ToolChoice.MODE_NONE
    return ["mode", int(mode)]


def _response_format(form: ResponseFormat) -> list[Any]:
    if form.kind != ResponseFormat.KIND_JSON_SCHEMA:
        return [int(form.kind or ResponseFormat.KIND_TEXT)]
    return [
        int(form.kind),
        form.schema_name,
        form.schema_description,
        schema_digest(form.schema_json),
        form.strict,
    ]


def _optional(chat: ChatInput, name: str) -> Any:
    return getattr(chat, name) if chat.HasField(name) else None  # type: ignore[arg-type]  # a field's name


def _number(value: float | None) -> str | None:
    """Exact text of a double; -0.0 means 0.0, and NaN is not lost as JSON's null."""
    return None if value is None else (value + 0.0).hex()


def schema_digest(text: str) -> str:
    """Hex SHA-256 of a JSON schema's meaning: spacing and the order of keys do not count.

    What is no JSON, or says a key twice, is taken by its text.
    """
    if len(text) > SCHEMA_MEMO_BYTES_MAX:
        return _schema_digest(text)
    return _memoised_schema_digest(text)


def _schema_digest(text: str) -> str:
    try:
        tree = json.loads(text, object_pairs_hook=_unique_keys, parse_float=_Float)
        body = json.dumps(_ordered(tree), ensure_ascii=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        body = f"text:{text}"
    return hashlib.sha256(body.encode()).hexdigest()


_memoised_schema_digest = lru_cache(maxsize=_SCHEMA_MEMO_ENTRIES_MAX)(_schema_digest)


class _Float(float):
    """A double; what is beyond one must not become infinity's equal."""

    def __new__(cls, text: str) -> Self:
        made = super().__new__(cls, text)
        if made in (float("inf"), float("-inf")):
            raise ValueError(f"{text} is beyond a double")
        return made


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _ordered(node: Any, *, keep_order: bool = False) -> Any:
    if isinstance(node, dict):
        items = node.items() if keep_order else sorted(node.items())
        return [["{", k, _ordered(v, keep_order=k == _ORDERED_KEY)] for k, v in items] or "{}"
    if isinstance(node, list):
        return ["[", *(_ordered(v) for v in node)]
    return {"value": node}
