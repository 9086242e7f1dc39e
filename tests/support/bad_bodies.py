"""All bad requests that the HTTP front knows. Those of gRPC: bad_requests."""

from typing import Any

HELLO = [{"role": "user", "content": "hello"}]
LOOK = {"type": "function", "function": {"name": "look"}}
CHAT = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": HELLO} | fields


def message(**fields: Any) -> dict[str, Any]:
    return body(messages=[{"role": "user", "content": "a"} | fields])


def tool(**fields: Any) -> dict[str, Any]:
    return body(tools=[{"type": "function", "function": {"name": "look"} | fields}])


def schema(**fields: Any) -> dict[str, Any]:
    wanted = {"name": "answer", "schema": {"type": "object"}} | fields
    return body(response_format={"type": "json_schema", "json_schema": wanted})


# (body, field, words of the description)
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": HELLO}, "model", "is required"),
    ({"model": "auto"}, "messages", "is required"),
    (body(model=5), "model", "valid string"),
    (body(model=""), "model", "name a model"),
    (body(messages=[]), "messages", "at least one message"),
    (body(messages="hello"), "messages", "valid array"),
    (body(messages=[{"content": "a"}]), "messages[0].role", "is required"),
    (message(role="boss"), "messages[0].role", "'boss' should be 'system', 'developer', 'user'"),
    (message(role="function"), "messages[0].role", "should be"),
    (message(content=""), "messages[0].content", "give it text"),
    (message(content=None), "messages[0].content", "give it text"),
    (message(content=5), "messages[0].content", "valid array"),
    (message(content=[{"type": "video"}]), "messages[0].content[0].type", "'image_url'"),
    (message(content=[{"type": "text"}]), "messages[0].content[0].text", "is required"),
    (
        message(content=[{"type": "image_url", "image_url": {"url": "http://a"}}]),
        "messages[0].content[0].image_url.url",
        "https://",
    ),
    (message(colour="red"), "messages[0].colour", "not a field of this API"),
    (message(tool_calls=[{}]), "messages[0].tool_calls[0].id", "is required"),
    (
        message(
            role="assistant",
            tool_calls=[{"id": "c", "type": "function", "function": {"name": "", "arguments": ""}}],
        ),
        "messages[0].tool_calls[0].function.name",
        "name the called function",
    ),
    (message(role="tool", tool_call_id="x"), "messages[0].tool_call_id", "no earlier message"),
    (body(colour="red"), "colour", "is not a field of this API; remove it"),
    (body(functions=[]), "functions", "send `tools`"),
    (body(function_call="auto"), "function_call", "send `tool_choice`"),
    (body(top_k=5), "top_k", "use `top_p`"),
    (body(audio={}), "audio", "ask for text"),
    (body(store=True), "store", "should be False"),
    (body(service_tier="flex"), "service_tier", "'auto' or 'default'"),
    (body(modalities=["audio"]), "modalities[0]", "should be 'text'"),
    (body(n=0), "n", "from 1 to 8"),
    (body(n=1.5), "n", "integer"),
    (body(n="2"), "n", "integer"),
    (body(n=2**40), "n", "less than or equal"),
    (body(seed=2**70), "seed", "less than or equal"),
    (body(temperature="hot"), "temperature", "number"),
    (body(temperature=5), "temperature", "from 0 to 2"),
    (body(top_p=-1), "top_p", "from 0 to 1"),
    (body(max_tokens=0), "max_tokens", "from 1 to 500"),
    (body(max_completion_tokens=501), "max_completion_tokens", "from 1 to 500"),
    (body(max_completion_tokens=5, max_tokens=5), "max_tokens", "send the latter"),
    (body(stop=list("abcde")), "stop", "at most 4"),
    (body(stop=5), "stop", "valid array"),
    (body(top_logprobs=3), "top_logprobs", "set logprobs to true"),
    (body(logit_bias={"x": 1}), "logit_bias.x", "integer"),
    (body(logit_bias={"5": 200}), "logit_bias[5]", "from -100 to 100"),
    (body(stream="yes"), "stream", "boolean"),
    (body(stream_options={"include_usage": True}), "stream_options", "set stream to true"),
    (body(stream=True, stream_options={"x": 1}), "stream_options.x", "not a field"),
    (body(tools=[{"type": "custom"}]), "tools[0].type", "should be 'function'"),
    (tool(name="a b"), "tools[0].function.name", "rename the tool"),
    (tool(parameters={"type": 5}), "tools[0].function.parameters", "no valid JSON schema"),
    (tool(parameters="{}"), "tools[0].function.parameters", "should be an object"),
    (body(tool_choice="required"), "tool_choice", "without tools"),
    (body(tools=[LOOK], tool_choice="always"), "tool_choice", "'required'"),
    (
        body(tools=[LOOK], tool_choice={"type": "function", "function": {"name": "see"}}),
        "tool_choice.function.name",
        "none of the tools: look",
    ),
    (body(response_format={"type": "xml"}), "response_format.type", "'json_schema'"),
    (
        body(response_format={"type": "json_schema"}),
        "response_format.json_schema",
        "is required with this type",
    ),
    (schema(name="a b"), "response_format.json_schema.name", "name the schema"),
    (schema(schema={"type": 1}), "response_format.json_schema.schema", "no valid JSON schema"),
    (schema(colour=1), "response_format.json_schema.colour", "not a field"),
    (body(reasoning_effort="low"), "reasoning_effort", "no reasoning model"),
    (body(metadata={"a": 1}), "metadata.a", "valid string"),
    (body(metadata={"a": "b" * 600}), "metadata['a']", "at most 512"),
    (body(user="a" * 300), "user", "at most 256"),
]

# (headers, field, words)
BAD_HEADERS = [
    ({"x-penstock-timeout-ms": "soon"}, "x-penstock-timeout-ms", "whole number of milliseconds"),
    ({"x-penstock-timeout-ms": "0"}, "x-penstock-timeout-ms", "not above 0"),
    ({"x-penstock-timeout-ms": "-5"}, "x-penstock-timeout-ms", "not above 0"),
    ({"x-penstock-timeout-ms": "99999999999"}, "x-penstock-timeout-ms", "at most 600"),
    ({"x-penstock-data-class": "secret"}, "x-penstock-data-class", "local-only or any"),
    ({"cache-control": "max-age=old"}, "cache-control", "whole number of seconds"),
    ({"cache-control": "max-age=-1"}, "cache-control: max-age", "from 0"),
    ({"x-client-request-id": "a b"}, "x-client-request-id", "1 to 128"),
]

# (body of /v1/completions, field, words)
BAD_COMPLETIONS = [
    ({"model": "auto"}, "prompt", "is required"),
    ({"model": "auto", "prompt": ""}, "prompt", "is empty"),
    ({"model": "auto", "prompt": ["a", "b"]}, "prompt", "one request for each"),
    ({"model": "auto", "prompt": [1, 2]}, "prompt[0]", "valid string"),
    ({"model": "auto", "prompt": "a", "echo": True}, "echo", "should be False"),
    ({"model": "auto", "prompt": "a", "suffix": "b"}, "suffix", "into the prompt"),
    ({"model": "auto", "prompt": "a", "best_of": 3}, "best_of", "equals n"),
    ({"model": "auto", "prompt": "a", "logprobs": 30}, "logprobs", "from 0 to 20"),
    ({"model": "auto", "prompt": "a", "messages": HELLO}, "messages", "not a field"),
    (
        {"model": "auto", "prompt": "a", "response_format": {"type": "json_object"}},
        "response_format",
        "/v1/chat/completions",
    ),
]
