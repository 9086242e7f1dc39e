"""From an HTTP request to the message that both fronts speak. Every fault of the shape at once.

All of it happens on the event loop, so that what a body may cost is bounded before it is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from pydantic import ValidationError

from penstock.core.errors import InvalidRequest
from penstock.router.http import schema
from penstock.router.http.headers import cache_control, data_class, timeout_seconds
from penstock.router.http.names import of_key, of_location, to_openai
from penstock.router.v1.router_pb2 import GenerateRequest
from penstock.router.validation.faults import Faults, shown
from penstock.router.validation.values import values_in
from penstock.type.v1 import chat_pb2

VALUES_MAX = 32_768
"""Of a body; each costs up to some microseconds. A thousand messages, all of them calls of tools or
answers to these, and 128 tools of eight parameters have 14,000.
"""

_encode = msgspec.json.Encoder().encode
_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_DEVELOPER,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
_MODES = {
    "none": chat_pb2.ToolChoice.MODE_NONE,
    "auto": chat_pb2.ToolChoice.MODE_AUTO,
    "required": chat_pb2.ToolChoice.MODE_REQUIRED,
}
_KINDS = {
    "text": chat_pb2.ResponseFormat.KIND_TEXT,
    "json_object": chat_pb2.ResponseFormat.KIND_JSON_OBJECT,
    "json_schema": chat_pb2.ResponseFormat.KIND_JSON_SCHEMA,
}
_SAMPLING = (
    "n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed",
)  # fmt: skip

B = TypeVar("B", bound=schema.Common)


@dataclass(frozen=True, slots=True)
class Parsed:
    message: GenerateRequest
    timeout_seconds: float | None
    stream: bool
    include_usage: bool
    rename: Callable[[str], str]


def chat(body: bytes, headers: Mapping[str, str]) -> Parsed:
    """A request of /v1/chat/completions.

    Raises:
        InvalidRequest: REQUEST_TOO_LARGE, INVALID_JSON, or all faults of the shape.
    """
    read, faults = _read(schema.ChatBody, body)
    message = _message(read, headers, faults)
    given, limit = message.input, read.max_completion_tokens
    if limit is not None and read.max_tokens is not None:
        faults.add("max_tokens", "is set together with max_completion_tokens; send the latter")
    for index, one in enumerate(read.messages):
        _add_message(given, one, f"messages[{index}]", faults)
    for tool in read.tools or ():
        _add_tool(given, tool)
    if read.tool_choice is not None:
        _set_choice(given, read.tool_choice)
    if read.response_format is not None:
        _set_format(given, read.response_format, faults)
    for name in ("parallel_tool_calls", "logprobs", "top_logprobs", "reasoning_effort"):
        if (value := getattr(read, name)) is not None:
            setattr(given, name, value)
    if limit is not None:
        given.max_tokens = limit
    message.user = read.user or read.safety_identifier or ""
    message.metadata.update(read.metadata or {})
    renamed = {"max_tokens": "max_completion_tokens"} if limit is not None else {}
    return _parsed(read, message, headers, faults, renamed)


def completion(body: bytes, headers: Mapping[str, str]) -> Parsed:
    """A request of /v1/completions.

    Raises:
        InvalidRequest: REQUEST_TOO_LARGE, INVALID_JSON, or all faults of the shape.
    """
    read, faults = _read(schema.CompletionBody, body)
    message = _message(read, headers, faults)
    prompts = [read.prompt] if isinstance(read.prompt, str) else read.prompt
    if len(prompts) != 1:
        faults.add("prompt", f"has {len(prompts)} texts; send one request for each")
    else:
        message.input.prompt = prompts[0]
    if read.best_of is not None and read.best_of != (read.n or 1):
        faults.add("best_of", "is supported only where it equals n; leave it out")
    if read.logprobs is not None:
        message.input.logprobs = True
        message.input.top_logprobs = read.logprobs
    message.user = read.user or ""
    return _parsed(read, message, headers, faults, {"top_logprobs": "logprobs"})


def _read(kind: type[B], body: bytes) -> tuple[B, Faults]:
    # A value has a byte at least.
    if len(body) > VALUES_MAX and values_in(body, VALUES_MAX) > VALUES_MAX:
        raise InvalidRequest(
            f"the body has too many values; at most {VALUES_MAX} in all its lists and objects. "
            "Trim the history, or simplify the tools.",
            reason="REQUEST_TOO_LARGE",
            metadata={"limit_values": str(VALUES_MAX)},
        )
    faults = Faults()
    try:
        read = kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        if found[0]["type"] == "json_invalid":
            raise InvalidRequest(
                f"the body is no valid JSON: {found[0]['msg'].removeprefix('Invalid JSON: ')}; "
                "send one JSON object",
                reason="INVALID_JSON",
            ) from None
        for fault in found:
            if faults.are_too_many:
                break
            faults.add(of_location(fault["loc"]), _told(fault))
        _add_unknown(faults, _unknown_of(kind, body))
        raise faults.error() from None
    _add_unknown(faults, read.model_extra or {})
    return read, faults


def _told(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return schema.REMEDIES.get(str(fault["loc"][-1]), schema.UNKNOWN_FIELD)
    if fault["type"] == "missing":
        return "is required; send it"
    text = str(fault["msg"]).replace("Input should", "should")
    value = fault["input"]
    return text if isinstance(value, dict | list) else f"{shown(value)} {text}"


def _unknown_of(kind: type[schema.Common], body: bytes) -> dict[str, Any]:
    """Unknown fields of a body that has other faults too."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return {}
    if not isinstance(given, dict):
        return {}
    known = kind.model_fields
    return {name: value for name, value in given.items() if name not in known}


def _add_unknown(faults: Faults, unknown: Mapping[str, Any]) -> None:
    for name, value in unknown.items():
        if faults.are_too_many:
            return
        if value is None and name in schema.REMEDIES:
            continue
        faults.add(of_key(name), schema.REMEDIES.get(name, schema.UNKNOWN_FIELD))


def _message(read: schema.Common, headers: Mapping[str, str], faults: Faults) -> GenerateRequest:
    message = GenerateRequest(
        model=read.model,
        cache_control=cache_control(headers, faults),
        data_class=data_class(headers, faults),
        client_request_id=headers.get("x-client-request-id", ""),
    )
    given = message.input
    for name in _SAMPLING:
        if (value := getattr(read, name)) is not None:
            setattr(given, name, value)
    if read.max_tokens is not None:
        given.max_tokens = read.max_tokens
    if read.stop is not None:
        given.stop.extend([read.stop] if isinstance(read.stop, str) else read.stop)
    given.logit_bias.update(read.logit_bias or {})
    return message


def _parsed(
    read: schema.Common, message: GenerateRequest, headers: Mapping[str, str], faults: Faults,
    renamed: dict[str, str],
) -> Parsed:  # fmt: skip
    seconds = timeout_seconds(headers, faults)
    stream = bool(read.stream)
    if read.stream_options is not None and not stream:
        faults.add("stream_options", "is set without stream; leave it out, or set stream to true")
    if faults:
        raise faults.error()
    include_usage = bool(read.stream_options and read.stream_options.include_usage)
    return Parsed(message, seconds, stream, include_usage, to_openai(renamed))


def _add_message(given: chat_pb2.ChatInput, one: schema.Message, path: str, faults: Faults) -> None:
    message = given.messages.add(
        role=_ROLES[one.role], name=one.name or "", tool_call_id=one.tool_call_id or ""
    )
    if isinstance(one.content, str):
        message.content.add(text=one.content)
    else:
        for index, part in enumerate(one.content or ()):
            _add_part(message, part, f"{path}.content[{index}]", faults)
    if one.refusal:
        message.content.add(refusal=one.refusal)
    for call in one.tool_calls or ():
        message.tool_calls.add(
            id=call.id, name=call.function.name, arguments_json=call.function.arguments
        )


def _add_part(message: chat_pb2.Message, part: schema.Part, path: str, faults: Faults) -> None:
    if part.type == "text" and part.text is not None:
        message.content.add(text=part.text)
    elif part.type == "refusal" and part.refusal is not None:
        message.content.add(refusal=part.refusal)
    elif part.type == "image_url" and part.image_url is not None:
        image = part.image_url
        message.content.add(image_url=chat_pb2.ImageUrl(url=image.url, detail=image.detail or ""))
    else:
        faults.add(f"{path}.{part.type}", f"is required in a part of the type {part.type}; send it")


def _add_tool(given: chat_pb2.ChatInput, tool: schema.Tool) -> None:
    function = tool.function
    added = given.tools.add(
        name=function.name,
        description=function.description or "",
        parameters_json=""
        if function.parameters is None
        else _encode(function.parameters).decode(),
    )
    if function.strict is not None:
        added.strict = function.strict


def _set_choice(given: chat_pb2.ChatInput, choice: str | schema.NamedChoice) -> None:
    if isinstance(choice, str):
        given.tool_choice.mode = _MODES[choice]
    else:
        given.tool_choice.function_name = choice.function.name


def _set_format(given: chat_pb2.ChatInput, asked: schema.ResponseFormat, faults: Faults) -> None:
    given.response_format.kind = _KINDS[asked.type]
    if asked.json_schema is None:
        if asked.type == "json_schema":
            faults.add("response_format.json_schema", "is required with this type; send a schema")
        return
    wanted = asked.json_schema
    given.response_format.schema_name = wanted.name
    given.response_format.schema_description = wanted.description or ""
    if wanted.schema_ is not None:
        given.response_format.schema_json = _encode(wanted.schema_).decode()
    if wanted.strict is not None:
        given.response_format.strict = wanted.strict
