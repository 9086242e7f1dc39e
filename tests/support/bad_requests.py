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


DEEP = '{"not":' * 80 + "{}" + "}" * 80

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
    ("tool schema", tool_parameters("{"), "input.tools[0].parameters_json", "no valid JSON"),
    ("tool list", tool_parameters("[]"), "input.tools[0].parameters_json", "no JSON object"),
    (
        "tool type",
        tool_parameters('{"type": "nothing"}'),
        "input.tools[0].parameters_json",
        "no valid JSON schema",
    ),
    (
        "far reference",
        tool_parameters('{"$ref": "https://x/y"}'),
        "input.tools[0].parameters_json",
        "only references within it",
    ),
    ("deep schema", tool_parameters(DEEP), "input.tools[0].parameters_json", "nested deeper"),
    (
        "absurdly deep schema",
        tool_parameters("[" * 30_000),
        "input.tools[0].parameters_json",
        "no valid JSON",
    ),
    (
        "long schema",
        tool_parameters(json.dumps({"description": "a" * 40_000})),
        "input.tools[0].parameters_json",
        "at most 32768",
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
        "no format",
        ask(chat(response_format=ResponseFormat())),
        "input.response_format.kind",
        "json_object or json_schema",
    ),
    ("bad schema", schema_format("{]"), "input.response_format.schema_json", "no valid JSON"),
    (
        "schema type",
        schema_format('{"type": 5}'),
        "input.response_format.schema_json",
        "no valid JSON schema",
    ),
    *(
        (
            f"schema with {low} over {high}",
            schema_format(f'{{"anyOf": [{{"{low}": 5, "{high}": 2}}]}}'),
            "input.response_format.schema_json",
            "allows nothing",
        )
        for low, high in (
            ("minLength", "maxLength"),
            ("minItems", "maxItems"),
            ("minProperties", "maxProperties"),
            ("minimum", "maximum"),
        )
    ),
    (
        "schema that counts beyond 32 bits",
        schema_format('{"type": "string", "minLength": 5, "maxLength": 4294967298}'),
        "input.response_format.schema_json",
        "over 2147483647",
    ),
    *(
        (
            f"schema with the pattern {pattern}",
            schema_format(json.dumps({"type": "string", "pattern": pattern})),
            "input.response_format.schema_json",
            "a pattern",
        )
        for pattern in (
            "^a{5, 2}$",
            "^a{5,1x}$",
            r"^\{a{7, 5}$",
            "^a{}$",
            "^a{99999999999999999999}$",
            "(" * 5_000 + ")" * 5_000,
        )
    ),
    (
        "schema with a name's pattern that overflows",
        schema_format('{"patternProperties": {"a{99999999999999999999}": {}}}'),
        "input.response_format.schema_json",
        "repeats too often",
    ),
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
