"""All bad input of one request, by the gRPC front's names. HTTP's: test_http_validation."""

import json
import math
from typing import get_args

import pytest
from openai.types.shared import ReasoningEffort

from penstock.core.assemble import joined
from penstock.core.errors import InvalidRequest, NotFound, PenstockError, PermissionDenied
from penstock.core.status import from_rpc_error
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.v1.router_pb2 import GenerateRequest
from penstock.router.validation import checked_deadline, validate
from penstock.router.validation.faults import TEXT_CHARACTERS_MAX
from penstock.router.validation.sampling import REASONING_EFFORTS
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_STOP,
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ChatInput,
    ChoiceDelta,
    Message,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from support.bad_requests import BAD, PNG, SCHEMA, ask, messages, schema_format, with_image
from support.chat import catalogue, chat, user
from support.fronts import RpcError, front_house, metadata

CASES = [pytest.param(*case[1:], id=case[0]) for case in BAD]


@pytest.mark.parametrize(("request_", "field", "words"), CASES)
def test_bad_input_names_field_limit_and_remedy(
    request_: GenerateRequest, field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(request_, catalogue(), Principal())
    told = {v.field: v.description for v in caught.value.violations}
    assert field in told
    assert words in " ".join(told.values())
    assert field in caught.value.message


def test_the_efforts_that_are_taken_are_those_of_openais_sdk() -> None:
    efforts = [word for kind in get_args(ReasoningEffort) for word in get_args(kind)]
    assert list(REASONING_EFFORTS) == efforts
    for effort in efforts:
        validate(ask(chat(reasoning_effort=effort), model="acme/thinker"), catalogue(), Principal())


async def test_no_bad_input_holds_or_sends_anything_over_the_wire() -> None:
    async with front_house() as house:
        for name, request, field, _ in BAD:
            for method in (house.stub.Generate, house.stub.ExplainRoute):
                with pytest.raises(RpcError) as caught:
                    await method(request, metadata=metadata())
                error = from_rpc_error(caught.value)
                assert InvalidRequest is type(error), name
                assert field in [v.field for v in error.violations], name
        assert [] == house.local.calls == house.paid.calls
        assert ({}, []) == (house.ledger.held, house.ledger.settled + house.ledger.voided)


BOUNDED = json.dumps(
    {
        "type": "object",
        "properties": {
            # Names of properties, not bounds; braces that are escaped or in a class, not repeats.
            "minLength": {"type": "string", "minLength": 2, "maxLength": 2},
            "maxLength": {"type": "integer", "minimum": -5.5, "maximum": 2},
            "pattern": {"type": "string", "pattern": r"^[{}a-z]{2,5}(b{,3}c{4}d{5,})+\{x, y\}$"},
        },
    }
)

GOOD = {
    "plain": ask(),
    "raw": ask(ChatInput(prompt="a", max_tokens=500)),
    "image": with_image(PNG),
    "https image": with_image("https://a/b.png", detail="low"),
    "tool round": messages(
        user("look"),
        Message(role=ROLE_ASSISTANT, tool_calls=[ToolCall(id="c", name="look")]),
        Message(role=ROLE_TOOL, tool_call_id="c"),
    ),
    "edges": ask(
        chat(
            n=8,
            temperature=2,
            top_p=1,
            presence_penalty=-2,
            frequency_penalty=2,
            logprobs=True,
            top_logprobs=20,
            stop=list("abcd"),
            logit_bias={0: -100, 5: 100},
            seed=-1,
            max_tokens=1,
            tools=[Tool(name="look", parameters_json=SCHEMA)],
            tool_choice=ToolChoice(function_name="look"),
        )
    ),
    "schema": schema_format('{"type": "object", "$defs": {"a": {}}, "$ref": "#/$defs/a"}'),
    "schema with bounds": schema_format(BOUNDED),
    "effort": ask(chat(reasoning_effort="low"), model="acme/thinker"),
    "labels": ask(metadata={str(i): "a" * 512 for i in range(16)}, client_request_id="a.B:c_d-1"),
}


@pytest.mark.parametrize("request_", GOOD.values(), ids=GOOD.keys())
def test_good_input_passes(request_: GenerateRequest) -> None:
    validate(request_, catalogue(), Principal())


def test_all_faults_are_told_at_once() -> None:
    bad = ask(chat("", n=0, temperature=9, stop=[""]), model="", user="\0")
    with pytest.raises(InvalidRequest) as caught:
        validate(bad, catalogue(), Principal())
    assert [
        "model",
        "input.messages[0].content",
        "input.n",
        "input.temperature",
        "input.stop[0]",
        "user",
    ] == [v.field for v in caught.value.violations]


def test_thousands_of_faults_stay_small_enough_for_trailers() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(messages(*[user("")] * 1000), catalogue(), Principal())
    assert len(caught.value.message) < 2 * TEXT_CHARACTERS_MAX
    assert "more faults" in caught.value.violations[-1].description


def test_hostile_values_are_quoted_short_and_printable() -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(ask(client_request_id="\r\n" + "é" * 10_000), catalogue(), Principal())
    assert len(caught.value.message) < 300
    assert caught.value.message.replace("…", "").isprintable()


def test_unknown_model_is_not_found_with_what_there_is() -> None:
    with pytest.raises(NotFound) as caught:
        validate(ask(model="small"), catalogue(), Principal())
    assert "MODEL_NOT_FOUND" == caught.value.reason
    assert "Did you mean local/small?" in caught.value.message
    assert "auto, own, local/small, acme/large" in caught.value.message


def test_key_that_may_not_use_the_model_hears_what_it_may() -> None:
    with pytest.raises(PermissionDenied) as caught:
        validate(ask(model="acme/large"), catalogue(), Principal(allowed_models=["own"]))
    assert "MODEL_NOT_ALLOWED" == caught.value.reason
    assert "It may use: own." in caught.value.message


def test_key_of_a_target_reaches_it_by_an_alias_and_is_bounded_by_it() -> None:
    narrow = Principal(allowed_models=["local/*"])
    validate(ask(chat(max_tokens=100)), catalogue(), narrow)
    with pytest.raises(InvalidRequest, match="from 1 to 100"):
        validate(ask(chat(max_tokens=101)), catalogue(), narrow)


def test_many_messages_and_large_requests_name_their_limits() -> None:
    with pytest.raises(InvalidRequest, match="at most 1024, trim the history"):
        validate(messages(*[user("a")] * 1025), catalogue(), Principal())
    with pytest.raises(PenstockError) as caught:
        validate(messages(user("a" * 5_000_000)), catalogue(), Principal())
    assert "REQUEST_TOO_LARGE" == caught.value.reason


@pytest.mark.parametrize("seconds", [0, -1, 601, 1e9, math.inf, math.nan])
def test_absurd_deadlines_are_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="at most 600"):
        checked_deadline(seconds, catalogue().limits, "grpc-timeout")


def test_deadline_has_a_default_and_a_maximum() -> None:
    limits = catalogue().limits
    assert 120 == checked_deadline(None, limits, "grpc-timeout")
    assert 600 == checked_deadline(600, limits, "grpc-timeout")


def test_joined_deltas_lose_nothing() -> None:
    token = TokenLogprob(token="a")
    found = joined(
        [
            ChoiceDelta(index=0, content="a", logprobs=[token]),
            ChoiceDelta(
                index=1,
                tool_calls=[ToolCallDelta(index=0, id="c", name="look", arguments_json="{")],
            ),
            ChoiceDelta(index=0, content="b", logprobs=[token]),
            ChoiceDelta(
                index=1,
                refusal="no",
                tool_calls=[
                    ToolCallDelta(index=0, arguments_json="}"),
                    ToolCallDelta(index=1, id="d", name="see"),
                ],
            ),
            ChoiceDelta(index=0, finish_reason=FINISH_REASON_STOP),
        ]
    )
    assert [
        ChoiceDelta(
            index=0, content="ab", logprobs=[token, token], finish_reason=FINISH_REASON_STOP
        ),
        ChoiceDelta(
            index=1,
            refusal="no",
            tool_calls=[
                ToolCallDelta(index=0, id="c", name="look", arguments_json="{}"),
                ToolCallDelta(index=1, id="d", name="see"),
            ],
        ),
    ] == found
