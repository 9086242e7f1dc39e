import asyncio
from collections.abc import AsyncIterator, Mapping

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from penstock.core.assemble import PIECE_CHARACTERS
from penstock.core.errors import CapacityExhausted, InvalidRequest, StreamBroken
from penstock.core.status import from_rpc_error
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.backends.base import AttemptFailed, Billing, Chunk
from penstock.router.fronts import MESSAGE_SLACK
from penstock.router.v1.router_pb2 import (
    CACHE_VERDICT_HIT,
    CacheControl,
    DataClass,
    GenerateRequest,
    ListModelsRequest,
)
from penstock.type.v1.chat_pb2 import ChatInput, ChoiceDelta
from support.chat import chat, user
from support.clock import HandClock
from support.fronts import FrontHouse, RpcError, front_house, metadata
from support.ports import text_answer
from support.wait import until

ASK = GenerateRequest(model="auto", input=chat())
PINNED = GenerateRequest(model="local/small", input=chat())


@pytest.fixture
async def house() -> AsyncIterator[FrontHouse]:
    async with front_house() as found:
        yield found


async def trailers_of(call) -> dict[str, str]:
    return {k: v for k, v in await call.trailing_metadata() or () if k.startswith("x-penstock-")}


async def test_reply_has_answer_usage_receipt_and_trailers(house: FrontHouse) -> None:
    call = house.stub.Generate(ASK, metadata=metadata())
    reply = await call
    receipt = reply.receipt
    assert "hi there" == reply.choices[0].message.content[0].text
    assert (10, 3) == (reply.usage.prompt_tokens, reply.usage.completion_tokens)
    assert house.ledger.posted_nano_usd == receipt.cost_nano_usd > 0
    assert {
        "x-penstock-request-id": receipt.request_id,
        "x-penstock-provider": "local",
        "x-penstock-model": "small",
        "x-penstock-reason": "local_first",
        "x-penstock-cache": "miss",
        "x-penstock-cost-nano-usd": str(receipt.cost_nano_usd),
        "x-penstock-baseline-cost-nano-usd": str(receipt.baseline_cost_nano_usd),
        "x-penstock-reservation-id": receipt.reservation_id,
        "x-penstock-prompt-tokens": "10",
        "x-penstock-cached-prompt-tokens": "0",
        "x-penstock-completion-tokens": "3",
    } == await trailers_of(call)


async def test_stream_names_what_answers_first_and_the_receipt_last(house: FrontHouse) -> None:
    call = house.stub.GenerateStream(ASK, metadata=metadata())
    replies = [reply async for reply in call]
    assert replies[0].request_id.startswith("req_")
    assert ("local", "small") == (replies[0].provider, replies[0].model)
    assert replies[0].created_unix_seconds > 1_700_000_000
    assert "hi there" == "".join(d.content for r in replies for d in r.deltas)
    assert [False] * (len(replies) - 1) + [True] == [r.HasField("receipt") for r in replies]
    assert [] == list(replies[-1].deltas)
    assert 3 == replies[-1].usage.completion_tokens
    told = await trailers_of(call)
    cost = str(replies[-1].receipt.cost_nano_usd)
    assert (cost, "3") == (
        told["x-penstock-cost-nano-usd"],
        told["x-penstock-completion-tokens"],
    )


async def test_tokens_in_quick_succession_come_in_few_messages(house: FrontHouse) -> None:
    many = [Chunk([ChoiceDelta(content="a")])] * 500
    house.local.script = [*many, *text_answer("!")]
    replies = [r async for r in house.stub.GenerateStream(ASK, metadata=metadata())]
    assert "a" * 500 + "!" == "".join(d.content for r in replies for d in r.deltas)
    assert len(replies) < 20


async def test_a_stored_answer_is_replayed_as_a_stream(house: FrontHouse) -> None:
    house.local.script = text_answer("word " * 400)
    await house.stub.Generate(ASK, metadata=metadata())
    replies = [r async for r in house.stub.GenerateStream(ASK, metadata=metadata())]
    texts = ["".join(d.content for d in r.deltas) for r in replies]
    assert "word " * 400 == "".join(texts)
    assert [PIECE_CHARACTERS] * 7 + [2_000 - 7 * PIECE_CHARACTERS, 0] == [len(t) for t in texts]
    assert "cache" == replies[0].provider
    assert CACHE_VERDICT_HIT == replies[-1].receipt.cache


async def test_x_api_key_is_taken_too(house: FrontHouse) -> None:
    reply = await house.stub.Generate(ASK, metadata=(("x-api-key", "ps-test-key"),))
    assert reply.receipt.settled


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((), "KEY_MISSING"),
        ((("authorization", "Basic abc"),), "KEY_MISSING"),
        ((("authorization", "Bearer sk-other"),), "KEY_UNKNOWN"),
        ((("authorization", "Bearer ps-nobody"),), "KEY_UNKNOWN"),
    ],
)
@pytest.mark.parametrize("method", ["Generate", "GenerateStream", "ListModels", "ExplainRoute"])
async def test_no_method_answers_without_a_valid_key(
    house: FrontHouse, method: str, given: tuple, reason: str
) -> None:
    request = ListModelsRequest() if method == "ListModels" else ASK
    call = getattr(house.stub, method)(request, metadata=given)
    with pytest.raises(RpcError) as caught:
        await (call.read() if method == "GenerateStream" else call)
    assert grpc.StatusCode.UNAUTHENTICATED == caught.value.code()
    assert reason == from_rpc_error(caught.value).reason
    assert [] == house.local.calls


async def test_bad_input_lists_every_field_in_bad_request(house: FrontHouse) -> None:
    bad = GenerateRequest(
        model="auto", input=ChatInput(messages=[user("")], temperature=3, max_tokens=0)
    )
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(bad, metadata=metadata())
    assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
    error = from_rpc_error(caught.value)
    assert ["input.messages[0].content", "input.temperature", "input.max_tokens"] == [
        v.field for v in error.violations
    ]
    assert error.metadata["request_id"].startswith("req_")


async def test_errors_carry_retry_info_and_trailers(house: FrontHouse) -> None:
    full = CapacityExhausted("full", retry_after_seconds=1.5)
    house.local.script = [AttemptFailed(full, billing=Billing.NOTHING, fall_back=True)]
    call = house.stub.Generate(PINNED, metadata=metadata())
    with pytest.raises(RpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert (CapacityExhausted, 1.5) == (type(error), error.retry_after_seconds)
    trailers = await trailers_of(call)
    assert error.metadata["request_id"] == trailers["x-penstock-request-id"]
    assert "CAPACITY_EXHAUSTED" == trailers["x-penstock-error-reason"]
    assert "0" == trailers["x-penstock-cost-nano-usd"]


async def test_stream_that_breaks_says_what_was_charged(house: FrontHouse) -> None:
    half = Chunk([ChoiceDelta(content="half")], prompt_tokens=9, completion_tokens_so_far=1)
    broke = AttemptFailed(StreamBroken("broke"), billing=Billing.UNKNOWN, fall_back=True)
    house.local.script = [half, broke]
    call = house.stub.GenerateStream(ASK, metadata=metadata())
    stream = aiter(call)
    assert "half" == (await anext(stream)).deltas[0].content
    with pytest.raises(RpcError) as caught:
        await anext(stream)
    assert grpc.StatusCode.ABORTED == caught.value.code()
    charged = (await trailers_of(call))["x-penstock-cost-nano-usd"]
    assert house.ledger.posted_nano_usd == int(charged) > 0


async def test_unexpected_errors_keep_their_text_to_ourselves(house: FrontHouse) -> None:
    house.local.script = [ValueError("secret text")]
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(PINNED, metadata=metadata())
    assert grpc.StatusCode.INTERNAL == caught.value.code()
    assert "secret" not in caught.value.details()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("chunks", [0, 1])
async def test_cancelled_call_stops_the_upstream_at_once_and_is_resolved(
    house: FrontHouse, streaming: bool, chunks: int
) -> None:
    house.local.script = [*[Chunk([ChoiceDelta(content="a")])] * chunks, None]
    method = house.stub.GenerateStream if streaming else house.stub.Generate
    call = method(PINNED, metadata=metadata())
    if streaming and chunks:
        await call.read()
    await until(lambda: house.local.calls)
    call.cancel()
    assert ["CLIENT_GONE"] == await house.resolved()
    assert 1 == house.local.closed_early


async def test_deadline_reaches_the_upstream_and_ends_the_call(house: FrontHouse) -> None:
    house.local.script = [Chunk([ChoiceDelta(content="a")]), None]
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(PINNED, metadata=metadata(), timeout=0.2)
    assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()
    assert ["CLIENT_GONE"] == await house.resolved()
    assert house.local.calls[0].deadline.remaining_seconds() < 0.2


async def test_absurd_deadline_is_refused_with_its_limit(house: FrontHouse) -> None:
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(PINNED, metadata=metadata(), timeout=1e6)
    assert ["grpc-timeout"] == [v.field for v in from_rpc_error(caught.value).violations]
    assert "at most 600" in caught.value.details()


async def test_oversize_request_names_the_limit_and_the_remedy(house: FrontHouse) -> None:
    limit = house.catalogue.limits.request_bytes_max
    big = GenerateRequest(model="auto", input=chat("a" * limit))
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(big, metadata=metadata())
    assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
    error = from_rpc_error(caught.value)
    assert ("REQUEST_TOO_LARGE", str(limit)) == (error.reason, error.metadata["limit_bytes"])
    huge = GenerateRequest(model="auto", input=chat("a" * 3 * limit))
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(huge, metadata=metadata())
    assert grpc.StatusCode.RESOURCE_EXHAUSTED == caught.value.code()
    error = from_rpc_error(caught.value)
    assert (InvalidRequest, "REQUEST_TOO_LARGE", str(limit * MESSAGE_SLACK)) == (
        type(error),
        error.reason,
        error.metadata["limit_bytes"],
    )


async def test_what_the_key_takes_comes_out_of_the_callers_time() -> None:
    clock = HandClock()
    async with front_house(clock=clock) as house:
        found = house.principals.of

        async def slow(headers: Mapping[str, str]) -> Principal:
            clock.now += 200
            return await found(headers)

        house.principals.of = slow
        await house.stub.Generate(PINNED, metadata=metadata(), timeout=300)
        # gRPC rounds a time-out of minutes up to a second.
        assert 100 == pytest.approx(house.local.calls[0].deadline.remaining_seconds(), abs=2)


async def test_key_or_request_of_the_class_local_only_is_never_paid(house: FrontHouse) -> None:
    full = CapacityExhausted("full")
    house.local.script = [AttemptFailed(full, billing=Billing.NOTHING, fall_back=True)]
    request = GenerateRequest(
        model="auto", input=chat(), data_class=DataClass.DATA_CLASS_LOCAL_ONLY
    )
    house.quota.put("ps-local", local_only=True)
    for ask, key in ((request, "ps-test-key"), (ASK, "ps-local")):
        with pytest.raises(RpcError):
            await house.stub.Generate(ask, metadata=metadata(key))
    assert [] == house.paid.calls
    await house.stub.Generate(ASK, metadata=metadata())
    assert 1 == len(house.paid.calls)


async def test_cache_control_no_store_leaves_nothing_behind(house: FrontHouse) -> None:
    ask = GenerateRequest(model="auto", input=chat(), cache_control=CacheControl(no_store=True))
    await house.stub.Generate(ask, metadata=metadata())
    assert {} == house.answers.entries
    await house.stub.Generate(ASK, metadata=metadata())
    hit = await house.stub.Generate(ASK, metadata=metadata())
    assert (CACHE_VERDICT_HIT, 0) == (hit.receipt.cache, hit.receipt.cost_nano_usd)


async def test_explain_tells_the_plan_and_spends_nothing(house: FrontHouse) -> None:
    plan = await house.stub.ExplainRoute(ASK, metadata=metadata())
    assert ["local", "acme"] == [attempt.provider for attempt in plan.attempts]
    assert plan.attempts[0].cost_bound_nano_usd > 0
    assert [] == house.local.calls
    assert 0 == house.ledger.posted_nano_usd


async def test_list_models_is_narrowed_to_the_key(house: FrontHouse) -> None:
    house.quota.put("ps-narrow", allowed_models=["own"])
    found = await house.stub.ListModels(ListModelsRequest(), metadata=metadata("ps-narrow"))
    assert ["own"] == [model.id for model in found.models]


async def test_list_models_says_which_of_our_own_take_tools(house: FrontHouse) -> None:
    found = await house.stub.ListModels(ListModelsRequest(), metadata=metadata())
    told = {m.id: m.supports_tools for m in found.models if m.HasField("supports_tools")}
    assert {"local/small": True} == told


async def test_health_and_reflection_answer_without_a_key(house: FrontHouse) -> None:
    check = health_pb2_grpc.HealthStub(house.channel).Check
    serving = await check(health_pb2.HealthCheckRequest())
    assert health_pb2.HealthCheckResponse.SERVING == serving.status
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(house.channel)
    async for told in stub.ServerReflectionInfo(iter([ask])):
        names = [service.name for service in told.list_services_response.service]
        break
    assert "penstock.router.v1.RouterService" in names


async def test_drain_lets_calls_end_and_refuses_new_ones(house: FrontHouse) -> None:
    gate = asyncio.Event()

    async def gated(call):
        yield Chunk([ChoiceDelta(content="one ")])
        await gate.wait()
        for chunk in text_answer("two"):
            yield chunk

    house.local.generate = gated
    stream = aiter(house.stub.GenerateStream(PINNED, metadata=metadata()))
    said = "".join(d.content for d in (await anext(stream)).deltas)
    drain = asyncio.create_task(house.fronts.drain(5))
    await until(lambda: not house.health.ready)
    with pytest.raises(RpcError) as caught:
        await house.stub.Generate(PINNED, metadata=metadata())
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    gate.set()
    replies = [reply async for reply in stream]
    said += "".join(d.content for r in replies for d in r.deltas)
    assert ("one two", True) == (said, replies[-1].receipt.settled)
    async with asyncio.timeout(5):
        await drain


async def test_drain_cuts_off_after_the_grace_with_a_status(house: FrontHouse) -> None:
    house.local.script = [Chunk([ChoiceDelta(content="a")]), None]
    call = house.stub.GenerateStream(PINNED, metadata=metadata())
    await call.read()
    async with asyncio.timeout(5):
        await house.fronts.drain(0.05)
    with pytest.raises(RpcError) as caught:
        await call.read()
    assert "ROUTER_DRAINING" == from_rpc_error(caught.value).reason
    assert ["ROUTER_DRAINING"] == await house.resolved()
