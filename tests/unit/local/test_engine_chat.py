"""What the engines share in reading a request."""

import pytest

from penstock.core.errors import InvalidRequest
from penstock.local.engines.chat import (
    is_call_forced,
    offered_tools,
    refuse_unsupported,
    refused_by,
)
from penstock.type.v1 import chat_pb2

Choice = chat_pb2.ToolChoice
Format = chat_pb2.ResponseFormat

SCHEMA = Format(kind=Format.KIND_JSON_SCHEMA, schema_json="{}")
NAMED = Choice(function_name="b")


def chat(*tools: str, **fields: object) -> chat_pb2.ChatInput:
    return chat_pb2.ChatInput(tools=[chat_pb2.Tool(name=name) for name in tools], **fields)


def fields_of(error: InvalidRequest) -> list[str]:
    return [violation.field for violation in error.violations]


def test_no_tool_is_offered_with_choice_none_and_one_when_it_is_named() -> None:
    asked = chat("weather", "time")
    assert [t.name for t in offered_tools(asked).values()] == ["weather", "time"]
    asked.tool_choice.mode = Choice.MODE_NONE
    assert offered_tools(asked) == {}
    asked.tool_choice.function_name = "time"
    assert {i: t.name for i, t in offered_tools(asked).items()} == {1: "time"}
    asked.tool_choice.function_name = "tide"
    with pytest.raises(InvalidRequest) as caught:
        offered_tools(asked)
    assert fields_of(caught.value) == ["input.tool_choice.function_name"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), False),
        (Choice(mode=Choice.MODE_AUTO), False),
        (Choice(mode=Choice.MODE_REQUIRED), True),
        (Choice(function_name="f"), True),
    ],
)
def test_a_call_is_forced_when_it_is_required_or_named(
    choice: chat_pb2.ToolChoice, expected: bool
) -> None:
    assert is_call_forced(chat("f", tool_choice=choice)) is expected


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (chat(reasoning_effort="high"), "input.reasoning_effort"),
        (chat("f", prompt="Hi"), "input.tools"),
        (chat(prompt="Hi", response_format=SCHEMA), "input.response_format"),
    ],
)
def test_what_no_engine_does_is_refused(asked: chat_pb2.ChatInput, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_unsupported(asked)
    assert fields_of(caught.value) == [field]


def test_a_raw_prompt_may_say_that_it_wants_text() -> None:
    refuse_unsupported(chat(prompt="Hi", response_format=Format(kind=Format.KIND_TEXT)))


@pytest.mark.parametrize(
    ("asked", "message", "fields"),
    [
        (chat(response_format=SCHEMA), "bad Schema", ["input.response_format.schema_json"]),
        (chat(response_format=SCHEMA), "no such role", []),
        (chat("a"), "failed to parse grammar", ["input.tools[0].parameters_json"]),
        (chat("a", "b"), "failed to parse grammar", ["input.tools"]),
        (chat("a", "b", tool_choice=NAMED), "bad schema", ["input.tools[1].parameters_json"]),
        (chat(), "bad schema", []),
    ],
)
def test_a_refusal_is_blamed_on_the_field_that_it_is_about(
    asked: chat_pb2.ChatInput, message: str, fields: list[str]
) -> None:
    error = refused_by("vLLM", asked, message)
    assert fields_of(error) == fields
    assert f"vLLM refuses it: {message}" in error.message
