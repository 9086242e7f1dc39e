"""Bodies of requests as OpenAI's API defines them. Shapes only: limits are `validation`'s task.

Of a list or a map, only the first wrong member is a fault: it may have thousands.

A field that we cannot honour is refused by name, with its remedy: an answer that quietly lacks what
was asked for is worse than an error. `null` is the same as absent, as with OpenAI.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

T = TypeVar("T")
ListOf = Annotated[list[T], Field(fail_fast=True)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]

REMEDIES = {
    "functions": "is deprecated and not supported; send `tools`",
    "function_call": "is deprecated and not supported; send `tool_choice`",
    "audio": "is not supported; ask for text",
    "prediction": "is not supported; leave it out",
    "web_search_options": "is not supported; give the model a tool that searches",
    "verbosity": "is not supported; ask for it in a message",
    "top_k": "is not part of OpenAI's API; use `top_p`",
    "repetition_penalty": "is not part of OpenAI's API; use `frequency_penalty`",
    "guided_json": "is not part of OpenAI's API; use `response_format`",
    "timeout": "is no field of the body; send the header x-penstock-timeout-ms",
    "suffix": "is not supported; write the whole text into the prompt",
    "response_format": "works with messages only; send it to /v1/chat/completions",
    "input": "belongs to the Responses API, which is not served here; send `messages`",
}
"""Fields of OpenAI's API, and of other servers', that people send."""

UNKNOWN_FIELD = "is not a field of this API; remove it"


def _text_or_list(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<list>"


def _word_or_object(value: Any) -> str:
    return "<word>" if isinstance(value, str) else "<object>"


class Body(BaseModel):
    """A part of a request's body. Unknown fields are faults."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ImageUrl(Body):
    url: str
    detail: str | None = None


class Part(Body):
    type: Literal["text", "image_url", "refusal"]
    text: str | None = None
    image_url: ImageUrl | None = None
    refusal: str | None = None


class CalledFunction(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[ListOf[Part], Tag("<list>")],
            Discriminator(_text_or_list),
        ]
        | None
    ) = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: ListOf[ToolCall] | None = None
    tool_call_id: str | None = None
    # What an SDK's answer carries beside its text when it is sent back as history.
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(Body):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: str


class NamedChoice(Body):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    name: str
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(BaseModel):
    """What chat and raw completions share.

    Unknown fields are collected (`model_extra`), so that each is told with its remedy.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, protected_namespaces=())

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Int32 | None = None
    stop: (
        Annotated[
            Annotated[str, Tag("<text>")] | Annotated[ListOf[str], Tag("<list>")],
            Discriminator(_text_or_list),
        ]
        | None
    ) = None
    max_tokens: Int64 | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[Int32, float], Field(fail_fast=True)] | None = None
    seed: Int64 | None = None
    user: str | None = None


class ChatBody(Common):
    messages: ListOf[Message]
    tools: ListOf[Tool] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<word>")]
            | Annotated[NamedChoice, Tag("<object>")],
            Discriminator(_word_or_object),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    max_completion_tokens: Int64 | None = None
    reasoning_effort: str | None = None
    metadata: Annotated[dict[str, str], Field(fail_fast=True)] | None = None
    # The ones below change nothing that we answer; any other value is refused.
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: ListOf[Literal["text"]] | None = None
    safety_identifier: str | None = None
    """OpenAI's successor of `user`."""
    prompt_cache_key: str | None = None
    """A hint to the upstream, which has its own."""


class CompletionBody(Common):
    prompt: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[ListOf[str], Tag("<list>")],
        Discriminator(_text_or_list),
    ]
    logprobs: Int32 | None = None
    echo: Literal[False] | None = None
    best_of: Int32 | None = None
