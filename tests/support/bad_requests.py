"""All bad requests that validation knows: (name, request, field, words of the description)."""

import json
import math

from penstock.router.v1.router_pb2 import CacheControl, GenerateRequest
from penstock.type.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_UNSPECIFIED,
    ROLE_USER,
    ChatInput,
    ContentPart,
    ImageUrl,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
)
from support.bad_schemas import BAD_SCHEMAS
from support.chat import chat, user

PNG = "data:image/png;base64,aGk="
SCHEMA = '{"type": "object"}'
LOOK = Tool(name="look")


def ask(the_chat: ChatInput | None = None, **fields: object) -> GenerateRequest:
    fields = {"model": "auto", "input": the_chat or chat()} | fields
    return GenerateRequest(**fields)


def messages(*given: Message) -> GenerateRequest:
    return ask(ChatInput(messages=given))


def with_image(url: str, role: int = ROLE_USER, detail: str = "") -> GenerateRequest:
    part = ContentPart(image_url=ImageUrl(url=url, detail=detail))
    return messages(Message(role=role, content=[part]))


def schema_format(text: str, name: str = "answer") -> GenerateRequest:
    kind = ResponseFormat.KIND_JSON_SCHEMA
    wanted = ResponseFormat(kind=kind, schema_name=name, schema_json=text)
    return ask(chat(response_format=wanted))


def tool_parameters(text: str) -> GenerateRequest:
    return ask(chat(tools=[Tool(name="look", parameters_json=text)]))


TOOL_FIELD = "input.tools[0].parameters_json"
SCHEMA_FIELD = "input.response_format.schema_json"

# (request, field, words of the description)
BAD: list[tuple[str, GenerateRequest, str, str]] = [
    ("no model", ask(model=""), "model", "name a model"),
    ("long model", ask(model="a" * 200), "model", "over 160 characters"),
    ("nothing", ask(ChatInput()), "input.messages", "at least one"),
    ("empty prompt", ask(ChatInput(prompt="")), "input.prompt", "is empty"),
    ("both", ask(chat(prompt="a")), "input.prompt", "one of the two"),
    ("empty text", messages(user("")), "input.messages[0].content", "give it text"),
    ("no content", messages(Message(role=ROLE_USER)), "input.messages[0].content", "is empty"),
    (
        "no part",
        messages(Message(role=ROLE_USER, content=[ContentPart(), ContentPart(text="a")])),
        "input.messages[0].content[0]",
        "set text or image_url",
    ),
    (
        "many tool calls",
        messages(Message(role=ROLE_ASSISTANT, tool_calls=[ToolCall(id="c", name="f")] * 300)),
        "input.messages[0].tool_calls",
        "over 256",
    ),
    (
        "many parts of many messages",
        messages(*[Message(role=ROLE_USER, content=[ContentPart(text="a")] * 18)] * 1000),
        "input.messages",
        "at most 16384",
    ),
    (
        "many parts",
        messages(Message(role=ROLE_USER, content=[ContentPart(text="a")] * 300)),
        "input.messages[0].content",
        "over 256 parts",
    ),
    (
        "no role",
        messages(Message(role=ROLE_UNSPECIFIED, content=[ContentPart(text="a")])),
        "input.messages[0].role",
        "system, developer, user, assistant or tool",
    ),
    (
        "unknown role",
        messages(Message(role=77, content=[ContentPart(text="a")])),
        "input.messages[0].role",
        "77 is no role",
    ),
    (
        "name with space",
        messages(Message(role=ROLE_USER, name="a b", content=[ContentPart(text="a")])),
        "input.messages[0].name",
        "1 to 64 characters",
    ),
    (
        "refusal by the user",
        messages(Message(role=ROLE_USER, content=[ContentPart(refusal="no")])),
        "input.messages[0].content[0].refusal",
        "assistant only",
    ),
    (
        "tool calls by the user",
        messages(
            Message(
                role=ROLE_USER,
                content=[ContentPart(text="a")],
                tool_calls=[ToolCall(id="c", name="look")],
            )
        ),
        "input.messages[0].tool_calls",
        "assistant only",
    ),
    (
        "tool call without id",
        messages(Message(role=ROLE_ASSISTANT, tool_calls=[ToolCall(name="look")])),
        "input.messages[0].tool_calls[0].id",
        "1 to 128",
    ),
    (
        "tool call without name",
        messages(Message(role=ROLE_ASSISTANT, tool_calls=[ToolCall(id="c")])),
        "input.messages[0].tool_calls[0].name",
        "name the called function",
    ),
    (
        "tool answer to nothing",
        messages(user("a"), Message(role=ROLE_TOOL, tool_call_id="c9")),
        "input.messages[1].tool_call_id",
        "no earlier message",
    ),
    (
        "tool answer without id",
        messages(user("a"), Message(role=ROLE_TOOL)),
        "input.messages[1].tool_call_id",
        "is empty",
    ),
    (
        "tool call id of the user",
        messages(Message(role=ROLE_USER, content=[ContentPart(text="a")], tool_call_id="c")),
        "input.messages[0].tool_call_id",
        "of a tool only",
    ),
    (
        "http image",
        with_image("http://a/b.png"),
        "input.messages[0].content[0].image_url.url",
        "https",
    ),
    (
        "file image",
        with_image("file:///etc"),
        "input.messages[0].content[0].image_url.url",
        "https",
    ),
    (
        "svg image",
        with_image("data:image/svg+xml;base64,aGk="),
        "input.messages[0].content[0].image_url.url",
        "png|jpeg|gif|webp",
    ),
    (
        "bad base64",
        with_image("data:image/png;base64,a?b"),
        "input.messages[0].content[0].image_url.url",
        "no valid base64",
    ),
    (
        "system image",
        with_image(PNG, ROLE_SYSTEM),
        "input.messages[0].content[0].image_url",
        "from the user only",
    ),
    (
        "image detail",
        with_image(PNG, detail="huge"),
        "input.messages[0].content[0].image_url.detail",
        "low, high and auto",
    ),
    ("n of 0", ask(chat(n=0)), "input.n", "from 1 to 8"),
    ("n of 9", ask(chat(n=9)), "input.n", "from 1 to 8"),
    ("negative n", ask(chat(n=-1)), "input.n", "from 1 to 8"),
    ("max_tokens of 0", ask(chat(max_tokens=0)), "input.max_tokens", "from 1 to 500"),
    ("negative max_tokens", ask(chat(max_tokens=-5)), "input.max_tokens", "from 1 to 500"),
    ("max_tokens of the alias", ask(chat(max_tokens=501)), "input.max_tokens", "from 1 to 500"),
    (
        "max_tokens of the pin",
        ask(chat(max_tokens=101), model="local/small"),
        "input.max_tokens",
        "from 1 to 100",
    ),
    ("max_tokens without model", ask(chat(max_tokens=0), model="x"), "input.max_tokens", "below 1"),
    ("hot", ask(chat(temperature=2.1)), "input.temperature", "from 0 to 2"),
    ("cold", ask(chat(temperature=-0.1)), "input.temperature", "from 0 to 2"),
    ("NaN", ask(chat(temperature=math.nan)), "input.temperature", "from 0 to 2"),
    ("infinite", ask(chat(top_p=math.inf)), "input.top_p", "from 0 to 1"),
    ("top_p of 0", ask(chat(top_p=0)), "input.top_p", "temperature 0"),
    ("presence", ask(chat(presence_penalty=2.1)), "input.presence_penalty", "from -2 to 2"),
    ("frequency", ask(chat(frequency_penalty=-2.1)), "input.frequency_penalty", "from -2 to 2"),
    ("five stops", ask(chat(stop=list("abcde"))), "input.stop", "at most 4"),
    ("empty stop", ask(chat(stop=["a", ""])), "input.stop[1]", "1 to 512"),
    ("top_logprobs alone", ask(chat(top_logprobs=1)), "input.top_logprobs", "set logprobs to true"),
    (
        "top_logprobs of 21",
        ask(chat(logprobs=True, top_logprobs=21)),
        "input.top_logprobs",
        "from 0 to 20",
    ),
    ("bias", ask(chat(logit_bias={3: 101})), "input.logit_bias[3]", "from -100 to 100"),
    ("bias NaN", ask(chat(logit_bias={3: math.nan})), "input.logit_bias[3]", "from -100 to 100"),
    ("bias of no token", ask(chat(logit_bias={-1: 1})), "input.logit_bias", "no token id"),
    (
        "much bias",
        ask(chat(logit_bias=dict.fromkeys(range(1025), 1.0))),
        "input.logit_bias",
        "at most 1024",
    ),
    ("effort", ask(chat(reasoning_effort="huge")), "input.reasoning_effort", "minimal, low"),
    (
        "effort of a model that does not reason",
        ask(chat(reasoning_effort="low")),
        "input.reasoning_effort",
        "no reasoning model",
    ),
    ("unnamed tool", ask(chat(tools=[Tool()])), "input.tools[0].name", "rename the tool"),
    ("two of a name", ask(chat(tools=[LOOK, LOOK])), "input.tools[1].name", "there twice"),
    *((f"tool: {n}", tool_parameters(t), TOOL_FIELD, w) for n, t, w in BAD_SCHEMAS),
    (
        "tools with many values",
        ask(
            chat(
                tools=[
                    Tool(name=f"t{i}", parameters_json=json.dumps({"allOf": [{}] * 100}))
                    for i in range(100)
                ]
            )
        ),
        "input.tools[81].parameters_json",
        "over 16384 values",
    ),
    (
        "tools with long patterns",
        ask(
            chat(
                tools=[
                    Tool(name=f"t{i}", parameters_json=json.dumps({"pattern": "a" * 16_000}))
                    for i in range(3)
                ]
            )
        ),
        "input.tools[2].parameters_json",
        "over 32768 characters of patterns",
    ),
    (
        "many tools",
        ask(chat(tools=[Tool(name=f"t{i}") for i in range(129)])),
        "input.tools",
        "at most 128",
    ),
    (
        "choice of no tool",
        ask(chat(tools=[LOOK], tool_choice=ToolChoice(function_name="see"))),
        "input.tool_choice.function_name",
        "none of the tools: look",
    ),
    (
        "choice without tools",
        ask(chat(tool_choice=ToolChoice(mode=ToolChoice.MODE_REQUIRED))),
        "input.tool_choice",
        "without tools",
    ),
    (
        "choice of nothing",
        ask(chat(tools=[LOOK], tool_choice=ToolChoice())),
        "input.tool_choice.mode",
        "none, auto or required",
    ),
    (
        "parallel without tools",
        ask(chat(parallel_tool_calls=True)),
        "input.parallel_tool_calls",
        "without tools",
    ),
    (
        "tools for a raw prompt",
        ask(ChatInput(prompt="a", tools=[LOOK])),
        "input.tools",
        "messages only",
    ),
    (
        "format for a raw prompt",
        ask(
            ChatInput(
                prompt="a",
                response_format=ResponseFormat(kind=ResponseFormat.KIND_JSON_OBJECT),
            )
        ),
        "input.response_format",
        "messages only",
    ),
    (
        "effort for a raw prompt",
        ask(ChatInput(prompt="a", reasoning_effort="low"), model="acme/thinker"),
        "input.reasoning_effort",
        "messages only",
    ),
    (
        "no format",
        ask(chat(response_format=ResponseFormat())),
        "input.response_format.kind",
        "json_object or json_schema",
    ),
    *((f"format: {n}", schema_format(t), SCHEMA_FIELD, w) for n, t, w in BAD_SCHEMAS),
    ("no schema", schema_format(""), "input.response_format.schema_json", "is empty"),
    ("unnamed schema", schema_format(SCHEMA, ""), "input.response_format.schema_name", "name the"),
    (
        "schema of text",
        ask(
            chat(response_format=ResponseFormat(kind=ResponseFormat.KIND_TEXT, schema_json=SCHEMA))
        ),
        "input.response_format.schema_json",
        "kind json_schema",
    ),
    ("data class", ask(data_class=9), "data_class", "ANY or LOCAL_ONLY"),
    (
        "negative age",
        ask(cache_control=CacheControl(max_age_seconds=-1)),
        "cache_control.max_age_seconds",
        "from 0 to",
    ),
    ("long user", ask(user="a" * 257), "user", "at most 256"),
    ("NUL in user", ask(user="a\0b"), "user", "control character"),
    ("many labels", ask(metadata={str(i): "a" for i in range(17)}), "metadata", "at most 16"),
    ("unnamed label", ask(metadata={"": "a"}), "metadata", "without a name"),
    ("long label", ask(metadata={"a": "b" * 513}), "metadata['a']", "at most 512"),
    ("NUL in a label", ask(metadata={"a": "\0"}), "metadata['a']", "control character"),
    ("client's id", ask(client_request_id="a b"), "client_request_id", "[A-Za-z0-9._:-]"),
    ("long id", ask(client_request_id="a" * 129), "client_request_id", "1 to 128"),
]
