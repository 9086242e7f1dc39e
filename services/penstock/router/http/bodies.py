"""Answers in OpenAI's shape: whole ones, and the chunks of a stream. Pure."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

from penstock.core.assemble import finish_word, refusal_of, text_of
from penstock.router.events import Done, Started
from penstock.router.tracing import verdict_name
from penstock.router.v1.router_pb2 import Model, Receipt
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_UNSPECIFIED,
    Choice,
    ChoiceDelta,
    FinishReason,
    TokenLogprob,
    Usage,
)

Json = dict[str, Any]

_KINDS = {Model.KIND_ALIAS: "alias", Model.KIND_LOCAL: "local", Model.KIND_PAID: "paid"}


class Shape(Protocol):
    """One of OpenAI's two kinds of answers."""

    whole_object: str
    chunk_object: str
    id_prefix: str

    def choice(self, choice: Choice) -> Json: ...

    def piece(self, delta: ChoiceDelta, *, first: bool, offset: int) -> Json:
        """`offset`: characters of the choice's tokens in the pieces before."""
        ...


class ChatShape:
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def choice(self, choice: Choice) -> Json:
        message: Json = {
            "role": "assistant",
            "content": text_of(choice.message) or (None if choice.message.tool_calls else ""),
            "refusal": refusal_of(choice.message) or None,
        }
        if choice.message.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments_json},
                }
                for call in choice.message.tool_calls
            ]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": _chat_logprobs(choice.logprobs),
            "finish_reason": _finish(choice.finish_reason),
        }

    def piece(self, delta: ChoiceDelta, *, first: bool, offset: int) -> Json:
        del offset
        told: Json = {"role": "assistant", "content": ""} if first else {}
        if delta.content:
            told["content"] = delta.content
        if delta.refusal:
            told["refusal"] = delta.refusal
        if delta.tool_calls:
            told["tool_calls"] = [_tool_piece(call) for call in delta.tool_calls]
        return {
            "index": delta.index,
            "delta": told,
            "logprobs": _chat_logprobs(delta.logprobs),
            "finish_reason": _finish(delta.finish_reason),
        }


class CompletionShape:
    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def choice(self, choice: Choice) -> Json:
        return {
            "index": choice.index,
            "text": text_of(choice.message),
            "logprobs": _text_logprobs(choice.logprobs, 0),
            "finish_reason": _finish(choice.finish_reason),
        }

    def piece(self, delta: ChoiceDelta, *, first: bool, offset: int) -> Json:
        del first
        return {
            "index": delta.index,
            "text": delta.content,
            "logprobs": _text_logprobs(delta.logprobs, offset),
            "finish_reason": _finish(delta.finish_reason),
        }


def whole(shape: Shape, choices: list[Choice], done: Done, started: Started) -> Json:
    return {
        **_frame(shape, shape.whole_object, started),
        "choices": [shape.choice(choice) for choice in choices],
        "usage": usage(done.usage),
        "penstock": penstock(done.receipt, done.usage),
    }


def chunk(shape: Shape, started: Started, choices: list[Json]) -> Json:
    return {**_frame(shape, shape.chunk_object, started), "choices": choices}


def _frame(shape: Shape, kind: str, started: Started) -> Json:
    return {
        "id": shape.id_prefix + started.request_id.removeprefix("req_"),
        "object": kind,
        "created": started.created_unix_seconds,
        "model": started.model,
    }


def usage(used: Usage) -> Json:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_prompt_tokens},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
    }


def penstock(receipt: Receipt, used: Usage) -> Json:
    """What answered, why, and what it cost."""
    return {
        "request_id": receipt.request_id,
        "provider": receipt.provider,
        "model": receipt.model,
        "reason": receipt.reason,
        "cache": verdict_name(receipt.cache),
        "cost_nano_usd": receipt.cost_nano_usd,
        "baseline_cost_nano_usd": receipt.baseline_cost_nano_usd,
        "saved_nano_usd": receipt.saved_nano_usd,
        "reservation_id": receipt.reservation_id,
        "max_tokens": receipt.max_tokens,
        "estimated": used.estimated,
        "settled": receipt.settled,
        "trace_id": receipt.trace_id,
        "attempts": [
            {
                "provider": a.provider,
                "model": a.model,
                "reason": a.reason,
                "outcome": a.outcome,
                "reservation_id": a.reservation_id,
                "cost_nano_usd": a.cost_nano_usd,
            }
            for a in receipt.attempts
        ],
    }


def model(found: Model, created_unix_seconds: int) -> Json:
    told: Json = {
        "id": found.id,
        "object": "model",
        "created": created_unix_seconds,
        "owned_by": found.id.partition("/")[0] if found.kind == Model.KIND_PAID else "penstock",
    }
    ours: Json = {"kind": _KINDS.get(found.kind, "unknown")}
    if found.targets:
        ours["targets"] = list(found.targets)
    for name in ("context_tokens", "max_output_tokens"):
        if value := getattr(found, name):
            ours[name] = value
    if found.HasField("input_nano_usd_per_mtok"):
        ours["input_nano_usd_per_mtok"] = found.input_nano_usd_per_mtok
    if found.HasField("output_nano_usd_per_mtok"):
        ours["output_nano_usd_per_mtok"] = found.output_nano_usd_per_mtok
    if found.HasField("ready_replicas"):
        ours["ready_replicas"] = found.ready_replicas
    if found.HasField("supports_tools"):
        ours["supports_tools"] = found.supports_tools
    return {**told, "penstock": ours}


def _tool_piece(call: Any) -> Json:
    function: Json = {"arguments": call.arguments_json}
    told: Json = {"index": call.index, "function": function}
    if call.id:
        told |= {"id": call.id, "type": "function"}
    if call.name:
        function["name"] = call.name
    return told


def _finish(reason: FinishReason.ValueType) -> str | None:
    if reason == FINISH_REASON_UNSPECIFIED:
        return None
    return finish_word(reason)


def _chat_logprobs(found: Any) -> Json | None:
    if not found:
        return None
    return {"content": [_token(one) for one in found], "refusal": None}


def _token(one: TokenLogprob) -> Json:
    return {
        "token": one.token,
        "logprob": one.logprob,
        "bytes": list(one.token_bytes),
        "top_logprobs": [
            {"token": top.token, "logprob": top.logprob, "bytes": list(top.token_bytes)}
            for top in one.top_logprobs
        ],
    }


def token_characters(found: Sequence[TokenLogprob]) -> int:
    return sum(len(one.token) for one in found)


def _text_logprobs(found: Sequence[TokenLogprob], offset: int) -> Json | None:
    if not found:
        return None
    return {
        "tokens": [one.token for one in found],
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": [{t.token: t.logprob for t in one.top_logprobs} for one in found],
        "text_offset": list(accumulate((len(one.token) for one in found[:-1]), initial=offset)),
    }
