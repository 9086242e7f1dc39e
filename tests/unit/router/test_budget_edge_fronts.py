"""What clients see of a budget's edge, of rate limits and of credit: over HTTP, gRPC and our own
client.
"""

import json
from collections.abc import AsyncIterator

import grpc
import httpx
import openai
import pytest

from penstock.client import Client, user
from penstock.core.catalogue import LedgerSettings
from penstock.core.errors import (
    BudgetExceeded,
    CreditExhausted,
    PenstockError,
    RateLimited,
    Unauthenticated,
)
from penstock.core.status import from_rpc_error
from penstock.router.v1.router_pb2 import GenerateRequest
from penstock.type.v1.chat_pb2 import FINISH_REASON_BUDGET, ChoiceDelta
from support.chat import chat
from support.fronts import FrontHouse, front_house, metadata
from support.ports import limited, local_words
from support.quota_server import KEY

BODY = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
ASK = GenerateRequest(model="auto", input=chat())
COST = 10 * 1_000 + 19 * 2_000
"""Of 19 words: the slice holds 20, one of them for the end of the text."""


@pytest.fixture
async def house() -> AsyncIterator[FrontHouse]:
    async with front_house(local_words(60)) as found:
        settings = LedgerSettings(slice_tokens=20)
        found.catalogue = found.catalogue.model_copy(update={"ledger": settings})
        found.ledger.extension = BudgetExceeded("spent")
        yield found


@pytest.fixture
async def sdk(house: FrontHouse) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{house.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(house: FrontHouse) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=house.url, headers=headers) as client:
        yield client


async def test_a_whole_answer_over_http_says_budget(house: FrontHouse, http: httpx.AsyncClient):
    answer = (await http.post("/v1/chat/completions", json=BODY)).json()
    (choice,) = answer["choices"]
    assert "budget" == choice["finish_reason"]
    assert 19 == len(choice["message"]["content"].split())
    assert COST == answer["penstock"]["cost_nano_usd"] == house.ledger.posted_nano_usd
    assert ["BUDGET_EXCEEDED"] == [a["outcome"] for a in answer["penstock"]["attempts"]]


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_stream_over_http_says_budget_and_ends_whole(
    house: FrontHouse, http: httpx.AsyncClient, include_usage: bool
):
    body = BODY | {"stream": True, "stream_options": {"include_usage": include_usage}}
    lines = (await http.post("/v1/chat/completions", json=body)).text.split("\n\n")
    assert "data: [DONE]" == lines[-2]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert ["budget"] == [reason for reason in reasons if reason]
    assert COST == chunks[-1]["penstock"]["cost_nano_usd"] == house.ledger.posted_nano_usd


async def test_a_raw_completion_says_budget(http: httpx.AsyncClient):
    body = {"model": "auto", "prompt": "hello"}
    answer = (await http.post("/v1/completions", json=body)).json()
    assert "budget" == answer["choices"][0]["finish_reason"]


async def test_the_sdk_reads_it(sdk: openai.AsyncOpenAI):
    answer = await sdk.chat.completions.create(model="auto", messages=BODY["messages"])
    assert "budget" == answer.choices[0].finish_reason
    stream = await sdk.chat.completions.create(model="auto", messages=BODY["messages"], stream=True)
    reasons = [c.finish_reason async for chunk in stream for c in chunk.choices]
    assert "budget" == reasons[-1]


async def test_a_whole_answer_over_grpc_says_budget(house: FrontHouse):
    reply = await house.stub.Generate(ASK, metadata=metadata())
    assert [FINISH_REASON_BUDGET] == [c.finish_reason for c in reply.choices]
    assert COST == reply.receipt.cost_nano_usd == house.ledger.posted_nano_usd
    assert 19 == reply.usage.completion_tokens


async def test_a_stream_over_grpc_says_budget_and_then_the_receipt(house: FrontHouse):
    replies = [r async for r in house.stub.GenerateStream(ASK, metadata=metadata())]
    deltas = [d for reply in replies for d in reply.deltas]
    assert [FINISH_REASON_BUDGET] == [d.finish_reason for d in deltas if d.finish_reason]
    assert 19 == len("".join(d.content for d in deltas).split())
    assert COST == replies[-1].receipt.cost_nano_usd == house.ledger.posted_nano_usd


REVOKED = Unauthenticated("key key_1 is revoked; use another", reason="KEY_REVOKED")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_revoked_in_mid_stream_is_told_as_that_over_http(
    house: FrontHouse, http: httpx.AsyncClient, stream: bool
):
    house.ledger.extension = REVOKED
    answer = await http.post("/v1/chat/completions", json=BODY | {"stream": stream})
    if stream:
        assert "budget" not in answer.text
        assert "[DONE]" not in answer.text
        *pieces, last = [
            json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line
        ]
        said = "".join(p["choices"][0]["delta"].get("content", "") for p in pieces)
        assert 19 == len(said.split())
    else:
        assert 401 == answer.status_code
        last = answer.json()
    assert REVOKED.message == last["error"]["message"]
    assert "KEY_REVOKED" == last["penstock"]["reason"]
    assert str(COST) == last["penstock"]["metadata"]["cost_nano_usd"]
    assert COST == house.ledger.posted_nano_usd


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_revoked_in_mid_stream_is_told_as_that_over_grpc(
    house: FrontHouse, stream: bool
):
    house.ledger.extension = REVOKED
    deltas: list[ChoiceDelta] = []

    async def read() -> None:
        if stream:
            async for reply in house.stub.GenerateStream(ASK, metadata=metadata()):
                deltas.extend(reply.deltas)
        else:
            await house.stub.Generate(ASK, metadata=metadata())

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await read()
    assert grpc.StatusCode.UNAUTHENTICATED == failed.value.code()
    told = from_rpc_error(failed.value)
    assert ("KEY_REVOKED", str(COST)) == (told.reason, told.metadata["cost_nano_usd"])
    assert (19 if stream else 0) == len("".join(d.content for d in deltas).split())
    assert not [d for d in deltas if d.finish_reason]
    assert COST == house.ledger.posted_nano_usd


@pytest.mark.parametrize("stream", [False, True])
async def test_our_client_hands_it_on(house: FrontHouse, stream: bool):
    async with Client(house.fronts.grpc.address, KEY) as client:
        if stream:
            async with client.stream("auto", [user("hello")]) as pieces:
                assert 19 == len("".join([piece.text async for piece in pieces]).split())
                reply = pieces.reply
        else:
            reply = await client.generate("auto", [user("hello")])
    assert "budget" == reply.finish_reason


CREDIT = CreditExhausted("no credit", metadata={"account_kind": "team", "account_id": "team_1"})


@pytest.mark.parametrize(
    ("error", "kind", "code", "retry"),
    [
        (limited("key", after_seconds=1.2), "rate_limit_error", "rate_limit_exceeded", True),
        (limited("key", after_seconds=None), "rate_limit_error", "rate_limit_exceeded", False),
        (CREDIT, "insufficient_quota", "insufficient_quota", False),
    ],
    ids=["limited", "never", "credit"],
)
async def test_a_refusal_over_http_is_of_openais_shape_and_true(
    house: FrontHouse,
    http: httpx.AsyncClient,
    error: PenstockError,
    kind: str,
    code: str,
    retry: bool,
):
    house.ledger.refusals = [error]
    answer = await http.post("/v1/chat/completions", json=BODY)
    assert 429 == answer.status_code
    told = answer.json()
    assert (kind, code) == (told["error"]["type"], told["error"]["code"])
    assert error.reason == told["penstock"]["reason"]
    assert error.metadata.items() <= told["penstock"]["metadata"].items()
    if retry:
        assert ("2", "1200") == (answer.headers["retry-after"], answer.headers["retry-after-ms"])
        assert "x-should-retry" not in answer.headers
    else:
        assert "retry-after" not in answer.headers
        assert "false" == answer.headers["x-should-retry"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(limited("key", after_seconds=1.2), RateLimited), (CREDIT, CreditExhausted)],
    ids=["limited", "credit"],
)
async def test_a_refusal_over_grpc_has_its_reason_and_its_time(
    house: FrontHouse, error: PenstockError, kind: type[PenstockError]
):
    house.ledger.refusals = [error]
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await house.stub.Generate(ASK, metadata=metadata())
    told = from_rpc_error(failed.value)
    assert grpc.StatusCode.RESOURCE_EXHAUSTED == failed.value.code()
    assert (kind, error.reason, error.retry_after_seconds) == (
        type(told), told.reason, told.retry_after_seconds,
    )  # fmt: skip


async def test_a_hit_of_a_key_with_a_limit_in_requests_is_counted(house: FrontHouse):
    house.quota.put(counts_requests=True)
    house.ledger.extension = None
    await house.stub.Generate(ASK, metadata=metadata())
    await house.stub.Generate(ASK, metadata=metadata())
    assert ["cache"] == [r.provider for r in house.ledger.counted]
