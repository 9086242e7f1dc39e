"""Bad input over HTTP: OpenAI's names of fields, its error shape, and nothing held afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from penstock.core.errors import InvalidRequest
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.http import app, parse
from penstock.router.http.errors import renamed
from penstock.router.v1.router_pb2 import DATA_CLASS_LOCAL_ONLY
from penstock.router.validation import validate
from support.bad_bodies import BAD, BAD_COMPLETIONS, BAD_HEADERS, CHAT, HELLO, body
from support.chat import catalogue
from support.fronts import FrontHouse, front_house
from support.quota_server import KEY


def check(text: bytes) -> None:
    """What the front does with a body before anything is planned."""
    parsed = parse.chat(text, {})
    try:
        validate(parsed.message, catalogue(), Principal())
    except InvalidRequest as error:
        raise renamed(error, parsed.rename) from None


@pytest.fixture
async def house() -> AsyncIterator[FrontHouse]:
    async with front_house() as found:
        yield found


@pytest.fixture
async def http(house: FrontHouse) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=house.url, headers=headers) as client:
        yield client


@pytest.mark.parametrize(("given", "field", "words"), BAD)
def test_bad_bodies_name_field_limit_and_remedy(
    given: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(json.dumps(given).encode())
    told = {v.field: v.description for v in caught.value.violations}
    assert field in told
    assert words in told[field]


async def test_no_bad_input_holds_or_sends_anything(
    house: FrontHouse, http: httpx.AsyncClient
) -> None:
    cases: list[tuple[str, dict[str, Any], dict[str, str], str, str]] = [
        *((CHAT, given, {}, field, words) for given, field, words in BAD),
        *((CHAT, body(), headers, field, words) for headers, field, words in BAD_HEADERS),
        *(("/v1/completions", given, {}, field, words) for given, field, words in BAD_COMPLETIONS),
    ]
    for path, given, headers, field, words in cases:
        answer = await http.post(path, json=given, headers=headers)
        assert 400 == answer.status_code, (given, headers)
        error = answer.json()["error"]
        assert "invalid_request_error" == error["type"]
        assert field == error["param"] or field in error["message"], (given, headers)
        assert words in error["message"], (given, headers)
    assert [] == house.local.calls == house.paid.calls
    assert ({}, []) == (house.ledger.held, house.ledger.settled + house.ledger.voided)


def test_all_faults_of_a_body_are_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse.chat(json.dumps({"model": 5, "messages": [{}], "colour": 1, "top_k": 1}).encode(), {})
    assert ["model", "messages[0].role", "colour", "top_k"] == [
        v.field for v in caught.value.violations
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nonsense",
        b"[1]",
        b'"a"',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800", "messages": []}',
        b"[" * 100_000,
    ],
)
def test_malformed_json_is_an_error_of_the_caller(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse.chat(text, {})


def test_not_a_number_is_out_of_range() -> None:
    text = b'{"model": "auto", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}'
    with pytest.raises(InvalidRequest):
        check(text)


def test_null_is_the_same_as_absent() -> None:
    names = set(parse.schema.ChatBody.model_fields) - {"model", "messages"}
    parsed = parse.chat(json.dumps(body(**dict.fromkeys(names), functions=None)).encode(), {})
    assert parse.chat(json.dumps(body()).encode(), {}).message == parsed.message


def test_answer_of_an_sdk_can_be_sent_back_as_history() -> None:
    answer = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        ],
    }
    result = {"role": "tool", "tool_call_id": "c", "content": ""}
    check(json.dumps(body(messages=[*HELLO, answer, result])).encode())


def test_headers_become_fields_of_the_request() -> None:
    parsed = parse.chat(
        json.dumps(body(safety_identifier="u-1", metadata={"a": "b"})).encode(),
        {
            "x-penstock-timeout-ms": "1500",
            "x-penstock-data-class": "Local-Only",
            "cache-control": 'no-cache, no-store, max-age="60", no-transform',
            "x-client-request-id": "mine",
            "x-stainless-read-timeout": "600",
        },
    )
    message_ = parsed.message
    assert 1.5 == parsed.timeout_seconds
    assert DATA_CLASS_LOCAL_ONLY == message_.data_class
    control = message_.cache_control
    assert (True, True, 60) == (control.no_cache, control.no_store, control.max_age_seconds)
    assert ("mine", "u-1", {"a": "b"}) == (
        message_.client_request_id,
        message_.user,
        dict(message_.metadata),
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "path_not_found"),
        ("POST", "/v1/responses", 404, "path_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/none/such", 404, "model_not_found"),
    ],
)
async def test_wrong_paths_and_methods_are_told_in_openais_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await http.request(method, path)
    assert (status, code) == (answer.status_code, answer.json()["error"]["code"])
    assert {"message", "type", "param", "code"} == set(answer.json()["error"])
    if status == 405:
        assert "POST" in answer.headers["allow"] or "GET" in answer.headers["allow"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_other_media_types_are_refused_with_the_remedy(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await http.post(CHAT, content=b"{}", headers=headers)
    assert 415 == answer.status_code
    assert "unsupported_media_type" == answer.json()["error"]["code"]


async def test_body_over_the_limit_is_refused_while_it_comes(
    house: FrontHouse, http: httpx.AsyncClient
) -> None:
    limit = house.catalogue.limits.request_bytes_max

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(limit // 65_536 + 2):
            yield b"a" * 65_536

    headers = {"content-type": "application/json"}
    for content in (b"a" * (limit + 1), endless()):
        answer = await http.post(CHAT, content=content, headers=headers)
        assert 413 == answer.status_code
        assert "request_too_large" == answer.json()["error"]["code"]
        assert str(limit) in answer.json()["error"]["message"]


async def test_body_that_does_not_arrive_is_given_up(
    house: FrontHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS_MAX", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.fronts.http.port)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        "content-type: application/json\r\ncontent-length: 100\r\n\r\n{".encode()
    )
    async with asyncio.timeout(5):
        status = await reader.readline()
    writer.close()
    assert b"HTTP/1.1 408" in status


async def test_key_is_checked_before_the_body_is_read(house: FrontHouse) -> None:
    async with httpx.AsyncClient(base_url=house.url) as stranger:
        answer = await stranger.post(CHAT, content=b"nonsense")
    assert 401 == answer.status_code
    assert "Bearer" == answer.headers["www-authenticate"]
    assert "KEY_MISSING" == answer.json()["penstock"]["reason"]


async def test_key_that_may_not_use_the_model_is_forbidden(
    house: FrontHouse, http: httpx.AsyncClient
) -> None:
    house.quota.put("ps-narrow", allowed_models=["own"])
    answer = await http.post(
        CHAT, json=body(model="acme/large"), headers={"authorization": "Bearer ps-narrow"}
    )
    assert 403 == answer.status_code
    error = answer.json()["error"]
    assert ("model", "model_not_allowed", "permission_error") == (
        error["param"],
        error["code"],
        error["type"],
    )
