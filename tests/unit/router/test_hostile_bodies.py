"""Bodies made to keep the router busy: what one costs is bounded, so that others are answered."""

import json
import tracemalloc
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from penstock.core.errors import InvalidRequest, PenstockError
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.http import parse, schema
from penstock.router.validation import validate
from penstock.router.validation.faults import TEXT_CHARACTERS_MAX
from penstock.router.validation.values import values_in
from support.bad_bodies import CHAT, body
from support.chat import catalogue
from support.fronts import front_house
from support.quota_server import KEY
from support.work import calls_of

BODY_BYTES = 4 * 1024 * 1024 - 256
"""Nearly what the catalogue takes."""

CALLS_MAX_REFUSED = 100
"""Of a body that is refused before anything is built of it."""

CALLS_MAX_TOLD = 1_000
"""Of one that is read, and has a fault or two."""

CALLS_PER_VALUE_MAX = 3
MEMORY_BYTES_PER_VALUE_MAX = 1_024

USER = '{"role":"user","content":"a"'
TOOL = '{"type":"function","function":{"name":"f"'
CALL = '{"id":"c","function":{"name":"","arguments":""}}'

# name: (what comes before, what is repeated with a number for N, what comes after), in "model" …
SHAPES = {
    "wrong messages": ('"messages":[', "1", "]"),
    "empty messages": ('"messages":[', "{}", "]"),
    "messages": ('"messages":[', USER + "}", "]"),
    "wrong parts": ('"messages":[{"role":"user","content":[', "1", "]}]"),
    "parts": ('"messages":[{"role":"user","content":[', '{"type":"text","text":"a"}', "]}]"),
    "unknown fields of a message": (f'"messages":[{USER},', '"N":1', "}]"),
    "annotations": (f'"messages":[{USER},"annotations":[', "{}", "]}]"),
    "wrong tool calls": ('"messages":[{"role":"assistant","tool_calls":[', "1", "]}]"),
    "tool calls": ('"messages":[{"role":"assistant","tool_calls":[', CALL, "]}]"),
    "unknown fields": (f'"messages":[{USER}}}],', '"N":1', ""),
    "unknown fields of a faulty body": (f'"n":"x","messages":[{USER}}}],', '"N":1', ""),
    "one field again and again": (f'"messages":[{USER}}}],', '"n":1', ""),
    "wrong stops": (f'"messages":[{USER}}}],"stop":[', "1", "]"),
    "stops": (f'"messages":[{USER}}}],"stop":[', '"a"', "]"),
    "wrong biases": (f'"messages":[{USER}}}],"logit_bias":{{', '"N":"a"', "}"),
    "wrong tokens": (f'"messages":[{USER}}}],"logit_bias":{{', '"aN":1', "}"),
    "biases": (f'"messages":[{USER}}}],"logit_bias":{{', '"N":1', "}"),
    "wrong labels": (f'"messages":[{USER}}}],"metadata":{{', '"N":1', "}"),
    "labels": (f'"messages":[{USER}}}],"metadata":{{', '"N":""', "}"),
    "wrong tools": (f'"messages":[{USER}}}],"tools":[', "1", "]"),
    "tools": (f'"messages":[{USER}}}],"tools":[', TOOL + "}}", "]"),
    "unknown fields of a tool": (f'"messages":[{USER}}}],"tools":[{TOOL},', '"N":1', "}}]"),
    "parameters": (f'"messages":[{USER}}}],"tools":[{TOOL},"parameters":{{', '"N":{}', "}}}]"),
    "wrong modalities": (f'"messages":[{USER}}}],"modalities":[', "1", "]"),
    "a list that nobody asked for": (f'"messages":[{USER}}}],"x":[', "{}", "]"),
    "a body cut short": (f'"messages":[{USER}}}],"x":[', "{}", "\n"),
}


def filled(shape: tuple[str, str, str], members: int | None = None) -> bytes:
    """A body of the shape with so many members; by default as many as the size allows."""
    before, member, after = shape
    head, tail = '{"model":"auto",' + before, after + "}"
    named = member.replace("N", "1234567")
    count = members or (BODY_BYTES - len(head) - len(tail)) // (len(named) + 1)
    if member == named:
        return (head + ",".join([member] * count) + tail).encode()
    numbers = range(1_000_000, 1_000_000 + count)
    return (head + ",".join(member.replace("N", str(n)) for n in numbers) + tail).encode()


KNOWN = catalogue()


def refusal(text: bytes) -> PenstockError | None:
    try:
        validate(parse.chat(text, {}).message, KNOWN, Principal())
    except PenstockError as error:
        return error
    return None


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_body_of_too_many_values_is_refused_before_it_is_read(shape: tuple[str, str, str]) -> None:
    text = filled(shape)
    errors: list[PenstockError | None] = []
    calls = calls_of(lambda: errors.append(refusal(text)))
    assert calls < CALLS_MAX_REFUSED
    (error,) = errors
    assert isinstance(error, InvalidRequest)
    assert "REQUEST_TOO_LARGE" == error.reason
    assert str(parse.VALUES_MAX) in error.message


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_body_at_the_limit_costs_little_for_each_value(shape: tuple[str, str, str]) -> None:
    each = values_in(filled(shape, 64), parse.VALUES_MAX) / 64
    text = filled(shape, int((parse.VALUES_MAX - 64) / max(1, each)))
    assert parse.VALUES_MAX / 2 < values_in(text, parse.VALUES_MAX) <= parse.VALUES_MAX
    errors: list[PenstockError | None] = []
    tracemalloc.start()
    refusal(text)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    calls = calls_of(lambda: errors.append(refusal(text)))
    assert calls < CALLS_PER_VALUE_MAX * parse.VALUES_MAX
    assert peak_bytes < MEMORY_BYTES_PER_VALUE_MAX * parse.VALUES_MAX
    (error,) = errors
    assert len(error.message if error else "") < 2 * TEXT_CHARACTERS_MAX


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith(("wrong", "empty"))])
def test_only_the_first_wrong_member_of_a_list_or_map_is_looked_at(name: str) -> None:
    text = filled(SHAPES[name], 1_000)
    with pytest.raises(ValidationError) as caught:
        schema.ChatBody.model_validate_json(text)
    faults = {error["loc"][:-1] for error in caught.value.errors()}
    assert 1 == len(faults)
    assert caught.value.error_count() < 3


@pytest.mark.parametrize(
    "given",
    [
        body(model="é" * 2_000_000),
        body(messages=[{"role": "é" * 2_000_000, "content": "a"}]),
        body(messages=[{"role": "user", "content": "a", "k" * 4_000_000: 1}]),
        body(**{"k" * 4_000_000: 1}),
        body(logit_bias={"k" * 4_000_000: 1}),
        body(user="u" * 4_000_000),
        body(tools=[{"type": "function", "function": {"name": "f" * 4_000_000}}]),
    ],
    ids=["model", "role", "field of a message", "field", "token", "user", "name"],
)
def test_long_words_are_told_short(given: dict[str, Any]) -> None:
    text = json.dumps(given, ensure_ascii=False).encode()
    errors: list[PenstockError | None] = []
    assert calls_of(lambda: errors.append(refusal(text))) < CALLS_MAX_TOLD
    (error,) = errors
    assert isinstance(error, InvalidRequest)
    assert len(error.message) < 500
    assert sum(map(len, error.metadata.values())) < 500


def test_long_text_is_no_complex_body() -> None:
    words = 'He said: "{[a, b, c]}", \\ and so on. '
    text = json.dumps(body(messages=[{"role": "user", "content": words * 100_000}])).encode()
    assert len(text) > BODY_BYTES * 0.9
    assert refusal(text) is None


def test_long_history_with_tools_is_no_complex_body() -> None:
    """As an agent sends it: the SDK's own messages, a thousand of them, and a hundred tools."""
    called = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f0", "arguments": "{}"}}
        ],
    }
    answer = {"role": "tool", "tool_call_id": "c", "content": "done"}
    properties = {f"p{n}": {"type": "string", "description": "what"} for n in range(8)}
    parameters = {"type": "object", "properties": properties, "required": ["p0"]}
    given = body(
        messages=[{"role": "user", "content": "go"}, *[called, answer] * 511],
        tools=[
            {"type": "function", "function": {"name": f"f{n}", "parameters": parameters}}
            for n in range(128)
        ],
    )
    assert refusal(json.dumps(given).encode()) is None


async def test_hostile_bodies_hold_and_send_nothing() -> None:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    async with front_house() as house, httpx.AsyncClient(base_url=house.url) as client:
        for name in ("wrong messages", "unknown fields", "wrong biases"):
            text = filled(SHAPES[name])
            answer = await client.post(CHAT, content=text, headers=headers)
            assert (413, "request_too_large") == (
                answer.status_code,
                answer.json()["error"]["code"],
            )
        assert [] == house.local.calls == house.paid.calls
        assert ({}, []) == (house.ledger.held, house.ledger.settled + house.ledger.voided)
