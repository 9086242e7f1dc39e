"""The client: one channel, one key."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypedDict, Unpack

import grpc

from penstock.client.reply import Reply
from penstock.client.retry import Retry, repeated
from penstock.client.stream import Stream
from penstock.core.channel import bearer, connect
from penstock.core.telemetry_context import current_traceparent, to_metadata
from penstock.router.v1.router_pb2 import (
    DATA_CLASS_LOCAL_ONLY,
    DATA_CLASS_UNSPECIFIED,
    CacheControl,
    ExplainRouteResponse,
    GenerateRequest,
    GenerateResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
)
from penstock.router.v1.router_pb2_grpc import RouterServiceStub
from penstock.type.v1.chat_pb2 import ChatInput, Message, ResponseFormat, Tool, ToolChoice

_SAMPLING = (
    "n", "logprobs", "top_logprobs", "seed", "temperature", "top_p", "presence_penalty",
    "frequency_penalty", "max_tokens", "reasoning_effort", "parallel_tool_calls",
)  # fmt: skip
_MODES = {
    "none": ToolChoice.MODE_NONE,
    "auto": ToolChoice.MODE_AUTO,
    "required": ToolChoice.MODE_REQUIRED,
}


class Options(TypedDict, total=False):
    """What a request may say beside its model and messages. Left out: the model's own default."""

    max_tokens: int
    n: int
    stop: Sequence[str]
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logprobs: bool
    top_logprobs: int
    logit_bias: Mapping[int, float]
    reasoning_effort: str
    tools: Sequence[Tool]
    tool_choice: str
    """One of "none", "auto" and "required", or the name of the one function to call."""
    parallel_tool_calls: bool
    json_schema: Mapping[str, Any]
    """The answer is JSON that fits this schema."""
    json_schema_name: str
    json_object: bool
    local_only: bool
    """Never leaves our own replicas."""
    no_cache: bool
    no_store: bool
    max_age_seconds: int
    user: str
    metadata: Mapping[str, str]
    client_request_id: str
    timeout_seconds: float
    """Of the call with all its retries; the router and the upstream know it too."""


class Client:
    """Calls one router. Safe for many tasks of one event loop; close it, or use `async with`.

    Args:
        address: host:port of the router's gRPC port.
        api_key: "ps-…".
        credentials: For TLS, e.g. `grpc.ssl_channel_credentials()`; None: plain text.
        timeout_seconds: Of each call that names none; None: the router's default.
        retry: What is repeated, and when.

    Raises:
        ValueError: a timeout that is negative or NaN; also from each call that names one.
    """

    def __init__(
        self,
        address: str,
        api_key: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_seconds: float | None = None,
        retry: Retry | None = None,
    ) -> None:
        self._channel = connect(address, credentials)
        self._stub = RouterServiceStub(self._channel)
        self._authorization = bearer(api_key)
        self._timeout_seconds = _seconds_of(timeout_seconds)
        self._retry = retry or Retry()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends what is under way."""
        await self._channel.close()

    async def generate(
        self, model: str, messages: Sequence[Message] | str, **options: Unpack[Options]
    ) -> Reply:
        """A complete answer. Text in place of messages is continued raw, without a chat template.

        Raises:
            PenstockError: see the package.
            TypeError: an option that there is not.
        """
        request = _request(model, messages, options)

        async def call(left_seconds: float | None) -> GenerateResponse:
            return await self._stub.Generate(
                request, timeout=left_seconds, metadata=self._metadata()
            )

        return Reply(await repeated(call, self._retry, self._seconds(options)))

    def stream(
        self, model: str, messages: Sequence[Message] | str, **options: Unpack[Options]
    ) -> Stream:
        """The same answer as it is made. The call begins with the first piece asked for."""
        request = _request(model, messages, options)

        def begin(left_seconds: float | None) -> Any:
            return self._stub.GenerateStream(
                request, timeout=left_seconds, metadata=self._metadata()
            )

        return Stream(begin, self._retry, self._seconds(options))

    async def models(self) -> Sequence[Model]:
        """What this key may use."""

        async def call(left_seconds: float | None) -> ListModelsResponse:
            return await self._stub.ListModels(
                ListModelsRequest(), timeout=left_seconds, metadata=self._metadata()
            )

        found = await repeated(call, self._retry, self._timeout_seconds)
        return found.models

    async def explain(
        self, model: str, messages: Sequence[Message] | str, **options: Unpack[Options]
    ) -> ExplainRouteResponse:
        """Where the request would go, why, what it can cost, and whether the ledger admits it.
        Nothing is spent.
        """
        request = _request(model, messages, options)

        async def call(left_seconds: float | None) -> ExplainRouteResponse:
            return await self._stub.ExplainRoute(
                request, timeout=left_seconds, metadata=self._metadata()
            )

        return await repeated(call, self._retry, self._seconds(options))

    def _seconds(self, options: Options) -> float | None:
        return _seconds_of(options.get("timeout_seconds", self._timeout_seconds))

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (self._authorization, *to_metadata(current_traceparent()))


def _seconds_of(timeout_seconds: float | None) -> float | None:
    # Said so that NaN, of which every comparison is false, is refused too.
    if timeout_seconds is not None and not timeout_seconds >= 0:
        raise ValueError(f"timeout_seconds is {timeout_seconds}: it cannot be less than zero")
    return None if timeout_seconds == math.inf else timeout_seconds


def _refuse_unknown(options: Options) -> None:
    """A type checker sees a misspelt option; without one it would be passed over in silence."""
    for name in options.keys() - Options.__annotations__.keys():
        likely = difflib.get_close_matches(name, Options.__annotations__, n=1)
        hint = f"; did you mean {likely[0]!r}?" if likely else ""
        raise TypeError(f"there is no option {name!r}{hint}")


def _request(model: str, messages: Sequence[Message] | str, options: Options) -> GenerateRequest:
    _refuse_unknown(options)
    cache = CacheControl(
        no_cache=options.get("no_cache", False), no_store=options.get("no_store", False)
    )
    if "max_age_seconds" in options:
        cache.max_age_seconds = options["max_age_seconds"]
    local_only = options.get("local_only", False)
    return GenerateRequest(
        model=model,
        input=_input(messages, options),
        data_class=DATA_CLASS_LOCAL_ONLY if local_only else DATA_CLASS_UNSPECIFIED,
        cache_control=cache,
        user=options.get("user", ""),
        metadata=options.get("metadata", {}),
        client_request_id=options.get("client_request_id", ""),
    )


def _input(messages: Sequence[Message] | str, options: Options) -> ChatInput:
    chat = ChatInput(
        tools=options.get("tools", ()),
        stop=options.get("stop", ()),
        logit_bias=options.get("logit_bias", {}),
    )
    if isinstance(messages, str):
        chat.prompt = messages
    else:
        chat.messages.extend(messages)
    given: Mapping[str, Any] = {**options}
    for name in _SAMPLING:
        if name in given:
            setattr(chat, name, given[name])
    if choice := options.get("tool_choice"):
        if choice in _MODES:
            chat.tool_choice.mode = _MODES[choice]
        else:
            chat.tool_choice.function_name = choice
    if options.get("json_object"):
        chat.response_format.kind = ResponseFormat.KIND_JSON_OBJECT
    if "json_schema" in options:
        chat.response_format.kind = ResponseFormat.KIND_JSON_SCHEMA
        chat.response_format.schema_name = options.get("json_schema_name", "answer")
        chat.response_format.schema_json = json.dumps(options["json_schema"])
    return chat
