"""llama.cpp's server speaks OpenAI's JSON: `ChatInput` to its body, its chunks to deltas. Pure."""

from collections.abc import Mapping
from typing import Any

from penstock.core.errors import (
    CapacityExhausted,
    Internal,
    InvalidRequest,
    PenstockError,
)
from penstock.local.engines.base import choice_count, context_exceeded
from penstock.local.engines.chat import Json, json_object, refuse_reasoning, role_of, text_of
from penstock.type.v1 import chat_pb2

OVERLOADED_CODES = (429, 503)
FAULT_CODES_FROM = 500
"""HTTP's codes, which llama.cpp's server uses in its error objects."""

SEED_MASK = 0x7FFFFFFF
"""llama.cpp seeds are uint32, and 0xFFFFFFFF means "at random": keep well below it."""

_MODES = {
    chat_pb2.ToolChoice.MODE_NONE: "none",
    chat_pb2.ToolChoice.MODE_AUTO: "auto",
    chat_pb2.ToolChoice.MODE_REQUIRED: "required",
}
_FINISH = {
    "stop": chat_pb2.FINISH_REASON_STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
    "tool_calls": chat_pb2.FINISH_REASON_TOOL_CALLS,
}


def body_of(chat: chat_pb2.ChatInput) -> Json:
    """The request as llama.cpp's server takes it, always streaming.

    Raises:
        InvalidRequest: a field that llama.cpp cannot honour, or JSON text that is none.
    """
    refuse_reasoning(chat)
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
    if chat.stop:
        body["stop"] = list(chat.stop)
    if chat.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in chat.logit_bias.items()}
    if chat.HasField("prompt"):
        body["prompt"] = chat.prompt
        if chat.logprobs:
            body["logprobs"] = max(1, chat.top_logprobs)
        return body
    body["messages"] = [_message(m, i) for i, m in enumerate(chat.messages)]
    if chat.logprobs:
        body |= {"logprobs": True, "top_logprobs": chat.top_logprobs}
    return body | _tools(chat) | _response_format(chat)


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
    if not chat.tools:
        return {}
    out: Json = {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json_object(
                        tool.parameters_json, f"input.tools[{i}].parameters_json"
                    ),
                },
            }
            for i, tool in enumerate(chat.tools)
        ]
    }
    if chat.tool_choice.function_name:
        name = chat.tool_choice.function_name
        out["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif chat.tool_choice.mode in _MODES:
        out["tool_choice"] = _MODES[chat.tool_choice.mode]
    if chat.HasField("parallel_tool_calls"):
        out["parallel_tool_calls"] = chat.parallel_tool_calls
    return out


def _response_format(chat: chat_pb2.ChatInput) -> Json:
    kind = chat.response_format.kind
    if kind == chat_pb2.ResponseFormat.KIND_JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    if kind == chat_pb2.ResponseFormat.KIND_JSON_SCHEMA:
        schema = json_object(chat.response_format.schema_json, "input.response_format.schema_json")
        name = chat.response_format.schema_name or "answer"
        json_schema = {"name": name, "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": json_schema}}
    return {}


def error_of(error: Mapping[str, Any], *, field: str) -> PenstockError:
    """llama.cpp's error object, which it sends in place of a chunk."""
    if error.get("type") == "exceed_context_size_error":
        return context_exceeded(
            prompt_tokens=int(error.get("n_prompt_tokens", 0)),
            context_tokens=int(error.get("n_ctx", 0)),
            field=field,
        )
    message = error.get("message", error)
    code = int(error.get("code", 400))
    if code in OVERLOADED_CODES:
        return CapacityExhausted(f"llama.cpp takes no more: {message}")
    if code >= FAULT_CODES_FROM:
        return Internal(f"llama.cpp failed: {message}")
    return InvalidRequest(f"llama.cpp refuses the request: {message}")


def choice_delta(choice: Mapping[str, Any]) -> chat_pb2.ChoiceDelta | None:
    """One choice of a chunk; None where it carries nothing (role-only, progress)."""
    delta = choice.get("delta") or {}
    out = chat_pb2.ChoiceDelta(
        index=choice.get("index", 0),
        content=delta.get("content") or choice.get("text") or "",
        finish_reason=_FINISH.get(choice.get("finish_reason") or "", 0),  # type: ignore[arg-type]  # 0 is UNSPECIFIED
        tool_calls=[_tool_call(c) for c in delta.get("tool_calls") or ()],
        logprobs=[_logprob(t) for t in (choice.get("logprobs") or {}).get("content") or ()],
    )
    has_more = out.content or out.finish_reason or out.tool_calls or out.logprobs
    return out if has_more else None


def _tool_call(call: Mapping[str, Any]) -> chat_pb2.ToolCallDelta:
    function = call.get("function") or {}
    return chat_pb2.ToolCallDelta(
        index=call.get("index", 0),
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments_json=function.get("arguments") or "",
    )


def _logprob(token: Mapping[str, Any]) -> chat_pb2.TokenLogprob:
    return chat_pb2.TokenLogprob(
        token=token["token"],
        logprob=token["logprob"],
        token_bytes=bytes(token.get("bytes") or ()),
        top_logprobs=[
            chat_pb2.TopLogprob(
                token=top["token"],
                logprob=top["logprob"],
                token_bytes=bytes(top.get("bytes") or ()),
            )
            for top in token.get("top_logprobs") or ()
        ],
    )


class Tally:
    """Counts of one request, over its choices: llama.cpp reports each choice by itself."""

    def __init__(self, choices: int) -> None:
        self._missing = choices
        self._generated: dict[int, int] = {}
        self._reported = 0
        self._cached: int | None = None
        self.prompt_tokens = 0
        self.tokens_per_second = 0.0

    @property
    def completion_tokens(self) -> int:
        return max(sum(self._generated.values()), self._reported)

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def add(self, chunk: Mapping[str, Any]) -> None:
        progress = chunk.get("prompt_progress") or {}
        self.prompt_tokens = max(self.prompt_tokens, progress.get("total", 0))
        timings = chunk.get("timings") or {}
        usage = chunk.get("usage")
        choices = chunk.get("choices") or ()
        if choices and "predicted_n" in timings:
            self._generated[choices[0].get("index", 0)] = timings["predicted_n"]
        if usage is None:
            return
        self._missing -= 1
        self._reported += usage["completion_tokens"]
        self.prompt_tokens = usage["prompt_tokens"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        # The prompt is read once: the choices after the first find it in the cache.
        self._cached = cached if self._cached is None else min(self._cached, cached)
        self.tokens_per_second = float(timings.get("predicted_per_second") or 0)

    def usage(self) -> chat_pb2.Usage:
        return chat_pb2.Usage(
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=min(self._cached or 0, self.prompt_tokens),
            completion_tokens=self._reported,
        )
