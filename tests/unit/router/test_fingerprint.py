"""What makes two requests the same, and what does not."""

import subprocess
import sys

import pytest
from google.protobuf.message import Message as ProtoMessage
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.deadline import Deadline
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.fingerprint import fingerprint, shareable
from penstock.router.request import Request
from penstock.router.v1.router_pb2 import CacheControl
from penstock.type.v1.chat_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
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

SCHEMA = '{"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "number"}}}'


def request(chat: ChatInput | None = None, **fields: object) -> Request:
    values: dict[str, object] = {
        "request_id": "req_1",
        "principal": Principal(org_id="org_a", team_id="t", key_id="k"),
        "model": "auto",
        "input": chat or rich_chat(),
        "deadline": Deadline.after(10),
        **fields,
    }
    return Request(**values)  # type: ignore[arg-type]


def rich_chat() -> ChatInput:
    """Every field is set, and none to what its absence means."""
    return ChatInput(
        messages=[
            Message(
                role=ROLE_USER,
                name="ann",
                content=[
                    ContentPart(text="what is 2 + 2"),
                    ContentPart(image_url=ImageUrl(url="https://host/a.png", detail="low")),
                ],
            ),
            Message(
                role=ROLE_ASSISTANT,
                content=[ContentPart(refusal="no")],
                tool_calls=[ToolCall(id="call_1", name="add", arguments_json='{"x": 2}')],
            ),
            Message(role=ROLE_TOOL, tool_call_id="call_1", content=[ContentPart(text="4")]),
        ],
        prompt="once upon",
        tools=[Tool(name="add", description="adds", parameters_json=SCHEMA, strict=True)],
        tool_choice=ToolChoice(function_name="add"),
        parallel_tool_calls=True,
        response_format=ResponseFormat(
            kind=ResponseFormat.KIND_JSON_SCHEMA,
            schema_name="sum",
            schema_description="a sum",
            schema_json=SCHEMA,
            strict=True,
        ),
        n=2,
        stop=["\n", "END"],
        logprobs=True,
        top_logprobs=3,
        seed=7,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.25,
        frequency_penalty=0.125,
        logit_bias={42: 1.5},
        max_tokens=64,
        reasoning_effort="low",
    )


def _leaves(message: ProtoMessage, path: tuple[object, ...] = ()):
    """Paths of all that is set, down to the plain values."""
    for field, value in message.ListFields():
        here = (*path, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield here, field
        elif field.is_repeated and field.message_type is not None:
            for i, item in enumerate(value):
                yield from _leaves(item, (*here, i))
        elif field.message_type is not None:
            yield from _leaves(value, here)
        else:
            yield here, field


def _changed(chat: ChatInput, path: tuple[object, ...], field) -> ChatInput:
    """A copy whose value at `path` is another one."""
    made = ChatInput()
    made.CopyFrom(chat)
    node = made
    for step in path[:-1]:
        node = node[step] if isinstance(step, int) else getattr(node, step)
    name = str(path[-1])
    value = getattr(node, name)
    if field.message_type is not None:
        value[42] = 2.5
    elif field.is_repeated:
        value.append("another")
    elif field.enum_type is not None:
        numbers = [v.number for v in field.enum_type.values if v.number not in (0, value)]
        setattr(node, name, numbers[0])
    elif isinstance(value, bool):
        setattr(node, name, not value)
    elif isinstance(value, str):
        setattr(node, name, value + " ")
    else:
        setattr(node, name, value + 1)
    return made


# Another spacing of a schema is no change: the tests of schemas below tell what is.
SCHEMA_TEXTS = {"parameters_json", "schema_json"}
LEAVES = [
    pytest.param(path, field, id=".".join(map(str, path)))
    for path, field in _leaves(rich_chat())
    if path[-1] not in SCHEMA_TEXTS
]


@pytest.mark.parametrize(("path", "field"), LEAVES)
def test_each_field_of_a_chat_counts(path, field) -> None:
    assert fingerprint(request()) != fingerprint(request(_changed(rich_chat(), path, field)))


def test_the_rich_chat_sets_every_field_there_is() -> None:
    """So that a field added to the proto fails here until the fingerprint knows it."""
    seen = {
        path[-1] if not isinstance(path[-1], int) else path[-2] for path, _ in _leaves(rich_chat())
    }
    known: set[str] = set()
    for kind in (
        ChatInput,
        Message,
        ContentPart,
        ImageUrl,
        Tool,
        ToolCall,
        ToolChoice,
        ResponseFormat,
    ):
        known |= {
            f.name
            for f in kind.DESCRIPTOR.fields
            if f.message_type is None or f.message_type.GetOptions().map_entry
        }
    # `mode` shares a oneof with `function_name`; it has a test of its own.
    assert seen == known - {"mode"}


@pytest.mark.parametrize("name", [f.name for f in ChatInput.DESCRIPTOR.fields])
def test_each_field_set_differs_from_it_absent(name: str) -> None:
    without = rich_chat()
    without.ClearField(name)  # type: ignore[arg-type]
    assert fingerprint(request()) != fingerprint(request(without))


@pytest.mark.parametrize(
    "other",
    [
        {"principal": Principal(org_id="org_b", team_id="t", key_id="k")},
        {"model": "local/small"},
        {"local_only": True},
    ],
)
def test_tenant_model_and_data_class_count(other: dict[str, object]) -> None:
    assert fingerprint(request()) != fingerprint(request(**other))


def test_what_the_model_stands_for_counts() -> None:
    one = fingerprint(request(), ("local/small", "acme/large"))
    assert one != fingerprint(request(), ("local/small",))
    assert one != fingerprint(request(), ("acme/large", "local/small"))
    assert one == fingerprint(request(), ["local/small", "acme/large"])


@pytest.mark.parametrize(
    "other",
    [
        {"request_id": "req_2"},
        {"deadline": Deadline.after(99)},
        {"user": "someone"},
        {"tags": {"a": "b"}},
        {"client_request_id": "c"},
        {"cache_control": CacheControl(max_age_seconds=5)},
        {"principal": Principal(org_id="org_a", team_id="u", key_id="l", name="n")},
    ],
)
def test_what_changes_no_answer_does_not_count(other: dict[str, object]) -> None:
    assert fingerprint(request()) == fingerprint(request(**other))


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"logprobs": False},
        {"top_logprobs": 0},
        {"presence_penalty": 0.0},
        {"frequency_penalty": -0.0},
        {"logit_bias": {3: 0.0}},
        {"reasoning_effort": ""},
        {"response_format": ResponseFormat()},
        {"response_format": ResponseFormat(kind=ResponseFormat.KIND_TEXT)},
        {"tool_choice": ToolChoice(mode=ToolChoice.MODE_NONE)},
        {"tool_choice": ToolChoice()},
    ],
)
def test_a_default_that_is_said_is_the_same_as_unsaid(fields: dict[str, object]) -> None:
    messages = [Message(role=ROLE_USER, content=[ContentPart(text="hi")])]
    bare = ChatInput(messages=messages)
    said = ChatInput(messages=messages, **fields)  # type: ignore[arg-type]
    assert fingerprint(request(bare)) == fingerprint(request(said))


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 1.0}, {"temperature": 0.0}, {"top_p": 1.0}, {"seed": 0}, {"max_tokens": 100}],
)
def test_a_default_that_is_each_models_own_is_not_assumed(fields: dict[str, object]) -> None:
    messages = [Message(role=ROLE_USER, content=[ContentPart(text="hi")])]
    said = ChatInput(messages=messages, **fields)  # type: ignore[arg-type]
    assert fingerprint(request(ChatInput(messages=messages))) != fingerprint(request(said))


def test_with_tools_the_choice_is_automatic_unless_said() -> None:
    def made(**fields: object) -> bytes:
        return fingerprint(request(ChatInput(tools=[Tool(name="f")], **fields)))  # type: ignore[arg-type]

    auto = ToolChoice(mode=ToolChoice.MODE_AUTO)
    assert made() == made(tool_choice=auto)
    others = [ToolChoice.MODE_NONE, ToolChoice.MODE_REQUIRED]
    different = {made(tool_choice=ToolChoice(mode=mode)) for mode in others}
    different.add(made(tool_choice=ToolChoice(function_name="f")))
    assert len(different | {made()}) == 4


def test_the_order_of_stops_and_biases_does_not_count() -> None:
    one = ChatInput(stop=["a", "b"], logit_bias={1: 1.0, 2: 2.0})
    two = ChatInput(stop=["b", "a", "a"], logit_bias={2: 2.0, 1: 1.0})
    assert fingerprint(request(one)) == fingerprint(request(two))


def test_where_text_is_cut_into_parts_counts() -> None:
    def made(*texts: str) -> bytes:
        content = [ContentPart(text=t) for t in texts]
        return fingerprint(request(ChatInput(messages=[Message(role=ROLE_USER, content=content)])))

    assert len({made("ab"), made("a", "b"), made("ab", ""), made("", "ab")}) == 4


def with_schema(text: str) -> bytes:
    form = ResponseFormat(kind=ResponseFormat.KIND_JSON_SCHEMA, schema_json=text)
    return fingerprint(request(ChatInput(response_format=form, tools=[Tool(parameters_json=text)])))


@pytest.mark.parametrize(
    "same",
    [
        SCHEMA.replace(" ", ""),
        SCHEMA.replace(" ", "\n  "),
        '{"properties":{"b":{"type":"string"},"a":{"type":"number"}},"type":"object"}',
        SCHEMA.replace("object", "\\u006fbject"),
    ],
)
def test_spacing_escapes_and_the_order_of_a_schemas_keys_do_not_count(same: str) -> None:
    assert with_schema(SCHEMA) == with_schema(same)


@pytest.mark.parametrize(
    "other",
    [
        "",
        "{}",
        "[]",
        "null",
        '"{}"',
        SCHEMA.replace("number", "integer"),
        # Structured output comes in the order of its properties: another order, another answer.
        '{"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}}',
        SCHEMA + "}",
        '{"type": "object", "type": "object"}',
        '{"maximum": 1}',
        '{"maximum": 1.0}',
        '{"maximum": "1"}',
        '{"maximum": 1e400}',
        '{"maximum": Infinity}',
        "[" * 100_000,
        "9" * 5_000,
    ],
)
def test_a_schema_of_another_meaning_counts(other: str) -> None:
    assert with_schema(SCHEMA) != with_schema(other)


def test_schemas_that_are_alike_but_not_equal_are_told_apart() -> None:
    texts = ["", "{}", "[]", "null", '"{}"', '{"a":1}', '{"a":1.0}', '{"a":"1"}', '{"a":true}',
             '{"a":null}', '[["{","a",1]]', '["["]', '{"value":1}', "1", '{"a":1,"a":1}',
             '{"a": 1e400}', '{"a": Infinity}', "[{}]", '["{}"]']  # fmt: skip
    assert len({with_schema(text) for text in texts}) == len(texts)


def test_another_process_makes_the_same_fingerprint() -> None:
    script = (
        "import sys; sys.path.insert(0, 'tests'); sys.path.insert(0, 'tests/unit/router')\n"
        "from test_fingerprint import fingerprint, request; print(fingerprint(request()).hex())"
    )
    made = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert made == {fingerprint(request()).hex()}


def test_the_fingerprint_of_a_known_request_never_changes_within_a_version() -> None:
    chat = ChatInput(messages=[Message(role=ROLE_USER, content=[ContentPart(text="hi")])])
    expected = "2661b4ec3e0f148be9439d3a6cbbd260c1b66c8886cf46cb740ebf9b83826d75"
    assert expected == fingerprint(request(chat), ("local/small",)).hex()


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        (ChatInput(), False),
        (ChatInput(temperature=0.0), True),
        (ChatInput(temperature=-0.0), True),
        (ChatInput(temperature=0.1), False),
        (ChatInput(temperature=0.0, seed=3, n=2), True),
    ],
)
def test_only_an_explicit_temperature_of_zero_shares(chat: ChatInput, expected: bool) -> None:
    assert expected == shareable(chat)


texts = st.text(st.characters(codec="utf-8"), max_size=4)
chats = st.builds(
    ChatInput,
    messages=st.lists(
        st.builds(
            Message,
            role=st.sampled_from([ROLE_USER, ROLE_ASSISTANT]),
            name=texts,
            content=st.lists(st.builds(ContentPart, text=texts), max_size=2),
            tool_calls=st.lists(st.builds(ToolCall, id=texts, name=texts), max_size=1),
        ),
        max_size=2,
    ),
    stop=st.lists(st.sampled_from("ab"), max_size=2, unique=True).map(sorted),
    temperature=st.one_of(st.none(), st.floats(0.1, 2)),
    seed=st.one_of(st.none(), st.integers(-3, 3)),
    max_tokens=st.one_of(st.none(), st.integers(1, 3)),
)
requests = st.tuples(chats, texts, st.sampled_from(["auto", "local/small"]), st.booleans())


@settings(max_examples=300, deadline=None)
@given(requests, requests)
def test_equal_fingerprints_mean_equal_requests(one, two) -> None:
    def made(parts) -> bytes:
        chat, org_id, model, local_only = parts
        return fingerprint(
            request(chat, principal=Principal(org_id=org_id), model=model, local_only=local_only)
        )

    assert (one == two) == (made(one) == made(two))
