"""llama.cpp's server speaks OpenAI's JSON: `ChatInput` to its body, its errors to ours. Pure."""

from collections.abc import Mapping
from typing import Any

from penstock.core.errors import CapacityExhausted, Internal, PenstockError
from penstock.local.engines.base import choice_count, context_exceeded, input_field
from penstock.local.engines.chat import (
    SCHEMA_FIELD,
    Json,
    is_call_forced,
    json_object,
    offered_tools,
    parameters_field,
    refuse_unsupported,
    refused,
    refused_by,
    role_of,
    text_of,
)
from penstock.type.v1 import chat_pb2

OVERLOADED_CODES = (429, 503)
FAULT_CODES_FROM = 500
"""HTTP's codes, which llama.cpp's server uses in its error objects."""

SEED_MASK = 0x7FFFFFFF
"""llama.cpp seeds are uint32, and 0xFFFFFFFF means "at random": keep well below it."""

WHOLE_CHARACTERS = "root ::= .*"
"""A grammar that takes every text, but of whole characters. Llama.cpp holds back the bytes of one
that is not whole, and says nothing through a run of first bytes, which a bias can force: no hang-up
would be noticed."""


def body_of(chat: chat_pb2.ChatInput) -> Json:
    """The request as llama.cpp's server takes it, always streaming.

    Raises:
        InvalidRequest: a field that llama.cpp cannot honour, or JSON text that is none.
    """
    refuse_unsupported(chat)
    body: Json = {
        "stream": True,
        "stream_options": {"include_usage": True},
        # Chunks come in prefill too, so that a hang-up is noticed there.
        "return_progress": True,
        # Each chunk then carries the engine's exact count so far.
        "timings_per_token": True,
        "max_tokens": chat.max_tokens,
        "n": choice_count(chat),
    }
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        if chat.HasField(name):
            body[name] = getattr(chat, name)
    if chat.HasField("seed"):
        body["seed"] = chat.seed & SEED_MASK
    # Not `stop`: see `llamacpp_output.Tally`.
    if chat.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in chat.logit_bias.items()}
    # 0 would bring no logprobs at all; `llamacpp_output` drops the alternative too many.
    top_logprobs = max(1, chat.top_logprobs)
    if chat.HasField("prompt"):
        body |= {"prompt": chat.prompt, "grammar": WHOLE_CHARACTERS}
        return body | ({"logprobs": top_logprobs} if chat.logprobs else {})
    body["messages"] = [_message(m, i) for i, m in enumerate(chat.messages)]
    if chat.logprobs:
        body |= {"logprobs": True, "top_logprobs": top_logprobs}
    formed = _tools(chat) | _response_format(chat)
    if not formed:
        return body | {"grammar": WHOLE_CHARACTERS}
    if chat.logit_bias:
        # Here llama.cpp has a grammar of its own and holds back what stands around the values.
        raise refused("input.logit_bias", "this model takes none beside tools or a response format")
    return body | formed


def _message(message: chat_pb2.Message, index: int) -> Json:
    content = text_of(message, index) if message.content else None
    out: Json = {"role": role_of(message, index), "content": content}
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


def _tools(chat: chat_pb2.ChatInput) -> Json:
    offered = offered_tools(chat)
    if not offered:
        return {}
    out: Json = {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json_object(tool.parameters_json, parameters_field(index)),
                },
            }
            for index, tool in offered.items()
        ],
        "tool_choice": "required" if is_call_forced(chat) else "auto",
    }
    if chat.HasField("parallel_tool_calls"):
        out["parallel_tool_calls"] = chat.parallel_tool_calls
    return out


def _response_format(chat: chat_pb2.ChatInput) -> Json:
    kind = chat.response_format.kind
    if kind == chat_pb2.ResponseFormat.KIND_JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    if kind == chat_pb2.ResponseFormat.KIND_JSON_SCHEMA:
        schema = json_object(chat.response_format.schema_json, SCHEMA_FIELD)
        name = chat.response_format.schema_name or "answer"
        json_schema = {"name": name, "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": json_schema}}
    return {}


def error_of(error: Mapping[str, Any], chat: chat_pb2.ChatInput) -> PenstockError:
    """llama.cpp's error object, which it sends in place of a chunk."""
    if error.get("type") == "exceed_context_size_error":
        return context_exceeded(
            prompt_tokens=int(error.get("n_prompt_tokens", 0)),
            context_tokens=int(error.get("n_ctx", 0)),
            field=input_field(chat),
        )
    message = str(error.get("message", error))
    code = int(error.get("code", 400))
    if code in OVERLOADED_CODES:
        return CapacityExhausted(f"llama.cpp takes no more: {message}")
    if code >= FAULT_CODES_FROM:
        return Internal(f"llama.cpp failed: {message}")
    return refused_by("llama.cpp", chat, message)
