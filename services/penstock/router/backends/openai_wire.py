"""`ChatInput` to the parameters of OpenAI's API, its chunks to deltas and usage. Pure.

The SDK builds its objects without validation, so that a provider's extra fields pass. What is read
here may therefore be of any type: a chunk that is not what it should be raises one of `MALFORMED`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.core.catalogue import PaidModel
from penstock.type.v1 import chat_pb2

Params = dict[str, Any]

MALFORMED = (AttributeError, KeyError, TypeError, ValueError, IndexError)
"""What reading a chunk of a wrong shape raises."""

_ROLES = {
    chat_pb2.ROLE_SYSTEM: "system",
    chat_pb2.ROLE_DEVELOPER: "developer",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
}
_MODES = {
    chat_pb2.ToolChoice.MODE_NONE: "none",
    chat_pb2.ToolChoice.MODE_AUTO: "auto",
    chat_pb2.ToolChoice.MODE_REQUIRED: "required",
}
_FINISH = {
    "stop": chat_pb2.FINISH_REASON_STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
    "tool_calls": chat_pb2.FINISH_REASON_TOOL_CALLS,
    "function_call": chat_pb2.FINISH_REASON_TOOL_CALLS,
    "content_filter": chat_pb2.FINISH_REASON_CONTENT_FILTER,
}
_SAMPLING = (
    "n",
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
)


def params_of(chat: chat_pb2.ChatInput, name: str, model: PaidModel) -> Params:
    """Keyword arguments of `chat.completions.create`, or of `completions.create` for a raw prompt.
    The chat was validated: its schemas are JSON.
    """
    params: Params = {
        "model": model.upstream_name or name,
        # Always: a hang-up stops the upstream, and the count comes with the last chunk.
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    params |= {field: getattr(chat, field) for field in _SAMPLING if chat.HasField(field)}  # type: ignore[arg-type]  # their names
    if chat.stop:
        params["stop"] = list(chat.stop)
    if chat.logit_bias:
        params["logit_bias"] = {str(token): bias for token, bias in chat.logit_bias.items()}
    if chat.HasField("prompt"):
        return params | _raw(chat)
    return params | _chat(chat, model)


def _raw(chat: chat_pb2.ChatInput) -> Params:
    params: Params = {"prompt": chat.prompt, "max_tokens": chat.max_tokens}
    if chat.logprobs:
        # The old API takes the number of alternatives where the new one takes a flag.
        params["logprobs"] = chat.top_logprobs
    return params


def _chat(chat: chat_pb2.ChatInput, model: PaidModel) -> Params:
    params: Params = {
        "messages": [_message(message) for message in chat.messages],
        model.max_tokens_field: chat.max_tokens,
    }
    if chat.logprobs:
        params["logprobs"] = True
        if chat.HasField("top_logprobs"):
            params["top_logprobs"] = chat.top_logprobs
    if chat.HasField("reasoning_effort"):
        params["reasoning_effort"] = chat.reasoning_effort
    if chat.tools:
        params["tools"] = [_tool(tool) for tool in chat.tools]
        if chat.HasField("parallel_tool_calls"):
            params["parallel_tool_calls"] = chat.parallel_tool_calls
        if chat.tool_choice.function_name:
            function = {"name": chat.tool_choice.function_name}
            params["tool_choice"] = {"type": "function", "function": function}
        elif chat.tool_choice.mode in _MODES:
            params["tool_choice"] = _MODES[chat.tool_choice.mode]
    return params | _response_format(chat.response_format)


def _message(message: chat_pb2.Message) -> Params:
    out: Params = {"role": _ROLES[message.role], "content": _content(message.content)}
    if message.name:
        out["name"] = message.name
    if message.tool_call_id:
        out["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json},
            }
            for call in message.tool_calls
        ]
    return out


def _content(parts: Sequence[chat_pb2.ContentPart]) -> str | list[Params] | None:
    if not parts:
        return None
    # One text goes as a plain string: every compatible provider takes that.
    if len(parts) == 1 and parts[0].HasField("text"):
        return parts[0].text
    return [_part(part) for part in parts]


def _part(part: chat_pb2.ContentPart) -> Params:
    if part.HasField("image_url"):
        image = {"url": part.image_url.url}
        if part.image_url.detail:
            image["detail"] = part.image_url.detail
        return {"type": "image_url", "image_url": image}
    if part.HasField("refusal"):
        return {"type": "refusal", "refusal": part.refusal}
    return {"type": "text", "text": part.text}


def _tool(tool: chat_pb2.Tool) -> Params:
    function: Params = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        function["parameters"] = json.loads(tool.parameters_json)
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _response_format(wanted: chat_pb2.ResponseFormat) -> Params:
    kinds = chat_pb2.ResponseFormat
    if wanted.kind == kinds.KIND_TEXT:
        return {"response_format": {"type": "text"}}
    if wanted.kind == kinds.KIND_JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    if wanted.kind != kinds.KIND_JSON_SCHEMA:
        return {}
    schema: Params = {
        "name": wanted.schema_name or "answer",
        "schema": json.loads(wanted.schema_json),
    }
    if wanted.schema_description:
        schema["description"] = wanted.schema_description
    if wanted.HasField("strict"):
        schema["strict"] = wanted.strict
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def deltas_of(chunk: Any) -> list[chat_pb2.ChoiceDelta]:
    """A chunk's deltas; those that carry nothing (a role alone) are left out.

    Raises:
        MALFORMED: the chunk is not of OpenAI's shape.
    """
    deltas = (_delta(choice) for choice in chunk.choices or ())
    return [
        d for d in deltas if d.content or d.refusal or d.tool_calls or d.logprobs or d.finish_reason
    ]


def _delta(choice: Any) -> chat_pb2.ChoiceDelta:
    # A chunk of /completions has `text` in place of a delta.
    delta: Any = getattr(choice, "delta", None)
    is_raw = delta is None
    finish = choice.finish_reason
    return chat_pb2.ChoiceDelta(
        index=choice.index,
        content=(choice.text if is_raw else delta.content) or "",
        refusal=(None if is_raw else getattr(delta, "refusal", None)) or "",
        tool_calls=[] if is_raw else [_tool_call(c) for c in delta.tool_calls or ()],
        logprobs=_logprobs(choice.logprobs) if getattr(choice, "logprobs", None) else [],
        # A reason that is not OpenAI's own ("eos", …) still says that the choice ended.
        finish_reason=_FINISH.get(finish, chat_pb2.FINISH_REASON_STOP) if finish else 0,  # type: ignore[arg-type]  # 0 is UNSPECIFIED
    )


def _tool_call(call: Any) -> chat_pb2.ToolCallDelta:
    function = call.function
    return chat_pb2.ToolCallDelta(
        index=call.index or 0,
        id=call.id or "",
        name=(function.name if function else "") or "",
        arguments_json=(function.arguments if function else "") or "",
    )


def _logprobs(logprobs: Any) -> list[chat_pb2.TokenLogprob]:
    content = getattr(logprobs, "content", None)
    if content is None:
        return _old_logprobs(logprobs)
    return [_token(_mapping(token)) for token in content]


def _token(token: Mapping[str, Any]) -> chat_pb2.TokenLogprob:
    return chat_pb2.TokenLogprob(
        token=token["token"],
        logprob=token["logprob"],
        token_bytes=_bytes(token),
        top_logprobs=[
            chat_pb2.TopLogprob(token=top["token"], logprob=top["logprob"], token_bytes=_bytes(top))
            for top in map(_mapping, token.get("top_logprobs") or ())
        ],
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    # Where the SDK knows no type (llama.cpp's /completions), plain dicts come.
    found: Mapping[str, Any] = value if isinstance(value, Mapping) else value.to_dict()
    return found


def _bytes(token: Mapping[str, Any]) -> bytes:
    told = token.get("bytes")
    return bytes(told) if told is not None else str(token["token"]).encode()


def _old_logprobs(logprobs: Any) -> list[chat_pb2.TokenLogprob]:
    """Of OpenAI's /completions: parallel lists. The first token of an echo has no logprob."""
    tokens = logprobs.tokens or ()
    values = logprobs.token_logprobs or ()
    tops: Sequence[Mapping[str, float] | None] = logprobs.top_logprobs or [None] * len(tokens)
    return [
        chat_pb2.TokenLogprob(
            token=token,
            logprob=value,
            token_bytes=token.encode(),
            top_logprobs=[
                chat_pb2.TopLogprob(token=t, logprob=p, token_bytes=t.encode())
                for t, p in (top or {}).items()
            ],
        )
        for token, value, top in zip(tokens, values, tops, strict=True)
        if value is not None
    ]
