"""Whoever finds a fault names the proto's path; a client of OpenAI's API hears its own name."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from penstock.core.errors import FieldViolation, InvalidRequest
from penstock.core.status import from_rpc_error
from penstock.router.backends.base import AttemptFailed, Billing
from support.bad_bodies import CHAT, body
from support.bad_requests import ask
from support.chat import chat
from support.fronts import FrontHouse, RpcError, front_house, metadata
from support.quota_server import KEY

COMPLETIONS = "/v1/completions"
RAW = {"model": "local/small", "prompt": "a"}

# (path, body, the field that the back end names, what the client calls it)
NAMES: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {}, "input.messages", "messages"),
    (CHAT, {}, "input.messages[0].content[0]", "messages[0].content[0]"),
    (CHAT, {"max_tokens": 5}, "input.max_tokens", "max_tokens"),
    (CHAT, {"max_completion_tokens": 5}, "input.max_tokens", "max_completion_tokens"),
    (CHAT, {}, "input.tools[0].parameters_json", "tools[0].function.parameters"),
    (CHAT, {}, "input.response_format.schema_json", "response_format.json_schema.schema"),
    (COMPLETIONS, RAW, "input.prompt", "prompt"),
    (COMPLETIONS, RAW, "input.top_logprobs", "logprobs"),
]


@pytest.fixture
async def house() -> AsyncIterator[FrontHouse]:
    async with front_house() as found:
        yield found


@pytest.fixture
async def http(house: FrontHouse) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=house.url, headers=headers) as client:
        yield client


def fault(field: str) -> AttemptFailed:
    error = InvalidRequest.of([FieldViolation(field, "is odd")], metadata={"engine": "ours"})
    return AttemptFailed(error, billing=Billing.NOTHING, fall_back=False)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "given", "field", "name"), NAMES)
async def test_fault_of_a_back_end_has_the_clients_name(
    house: FrontHouse,
    http: httpx.AsyncClient,
    path: str,
    given: dict[str, Any],
    field: str,
    name: str,
    stream: bool,
) -> None:
    house.local.script = [fault(field)]
    asked = given if path == COMPLETIONS else body(model="local/small") | given
    answer = await http.post(path, json=asked | {"stream": stream})
    assert 400 == answer.status_code
    told = answer.json()
    assert (name, f"{name}: is odd") == (told["error"]["param"], told["error"]["message"])
    assert [{"field": name, "description": "is odd"}] == told["penstock"]["violations"]
    assert "ours" == told["penstock"]["metadata"]["engine"]


async def test_over_grpc_it_has_the_protos(house: FrontHouse) -> None:
    house.local.script = [fault("input.messages")]
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(ask(model="local/small"), metadata=metadata())
    error = from_rpc_error(caught.value)
    assert ["input.messages"] == [v.field for v in error.violations]


@pytest.mark.parametrize("choices", [8, 9])
async def test_validation_and_plan_name_one_field(
    house: FrontHouse, http: httpx.AsyncClient, choices: int
) -> None:
    """Eight are more than the slots of that model, nine more than any request may have."""
    request = ask(chat(n=choices), model="local/small")
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(request, metadata=metadata())
    assert ["input.n"] == [v.field for v in from_rpc_error(caught.value).violations]
    answer = await http.post(CHAT, json=body(model="local/small", n=choices))
    assert "n" == answer.json()["error"]["param"]
