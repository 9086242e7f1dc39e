"""`ChatInput` to vLLM's SamplingParams. vLLM is imported only when called."""

from typing import Any

from penstock.local.engines.base import choice_count
from penstock.local.engines.chat import (
    SCHEMA_FIELD,
    is_call_forced,
    json_object,
    offered_tools,
    refuse_unsupported,
    refused,
    refused_by,
)
from penstock.local.engines.vllm_prompt import call_schema
from penstock.type.v1 import chat_pb2

SEED_MASK = 0x7FFF_FFFF_FFFF_FFFF
"""vLLM takes -1 for "no seed", and torch no other negative ones."""

GREEDY_BELOW = 1e-5
"""Temperature that vLLM takes for 0."""

TOP_P_MIN = 1e-6
"""vLLM refuses 0, which OpenAI takes: the most likely token alone."""


def sampling_params(chat: chat_pb2.ChatInput) -> Any:
    """vllm.SamplingParams that streams deltas.

    Raises:
        InvalidRequest: a field that vLLM cannot honour or finds out of its range.
    """
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    refuse_unsupported(chat)
    fields: dict[str, Any] = {
        "n": choice_count(chat),
        "max_tokens": chat.max_tokens,
        "stop": list(chat.stop),
        "output_kind": RequestOutputKind.DELTA,
        "structured_outputs": _grammar(chat),
    }
    for name in ("temperature", "presence_penalty", "frequency_penalty"):
        if chat.HasField(name):
            fields[name] = getattr(chat, name)
    if choice_count(chat) > 1 and chat.HasField("temperature") and chat.temperature < GREEDY_BELOW:
        # vLLM refuses several greedy choices; to sample from the likeliest token alone is the same.
        fields |= {"temperature": 1.0, "top_k": 1}
    if chat.HasField("top_p"):
        fields["top_p"] = max(chat.top_p, TOP_P_MIN) if chat.top_p >= 0 else chat.top_p
    if chat.HasField("seed"):
        fields["seed"] = chat.seed & SEED_MASK
    if chat.logprobs:
        fields["logprobs"] = chat.top_logprobs
    if chat.logit_bias:
        fields["logit_bias"] = dict(chat.logit_bias)
    try:
        return SamplingParams(**fields)
    except (VLLMClientError, ValueError, TypeError) as error:
        raise refused_by("vLLM", chat, str(error)) from error


def _grammar(chat: chat_pb2.ChatInput) -> Any:
    """What the text must match; None: anything."""
    from vllm.sampling_params import StructuredOutputsParams

    tools = offered_tools(chat)
    if is_call_forced(chat):
        if not tools:
            raise refused("input.tool_choice", "demands a call, and input.tools is empty")
        return StructuredOutputsParams(json=call_schema(tools))
    kind = chat.response_format.kind
    if kind == chat_pb2.ResponseFormat.KIND_JSON_OBJECT:
        return StructuredOutputsParams(json_object=True)
    if kind == chat_pb2.ResponseFormat.KIND_JSON_SCHEMA:
        schema = json_object(chat.response_format.schema_json, SCHEMA_FIELD)
        return StructuredOutputsParams(json=schema)
    return None
