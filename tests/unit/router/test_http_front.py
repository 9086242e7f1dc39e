import asyncio
import json
import socket
from collections.abc import AsyncIterator

import httpx
import openai
import pytest

from penstock.core.assemble import PIECE_CHARACTERS
from penstock.core.errors import CapacityExhausted, StreamBroken
from penstock.core.server import PortInUse
from penstock.router.backends.base import AttemptFailed, Billing, Chunk
from penstock.router.http.server import HttpServer
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_STOP,
    FINISH_REASON_TOOL_CALLS,
    ChoiceDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from support.fronts import FrontHouse, front_house
from support.ports import text_answer
from support.quota_server import KEY
from support.wait import until

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def house() -> AsyncIterator[FrontHouse]:
    async with front_house() as found:
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


async def test_sdk_gets_an_answer_with_usage_and_receipt(
    house: FrontHouse, sdk: openai.AsyncOpenAI
) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(model="auto", messages=HELLO)
    answer = raw.parse()
    assert "hi there" == answer.choices[0].message.content
    assert "stop" == answer.choices[0].finish_reason
    assert (10, 3, 13) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
        answer.usage.total_tokens,
    )
    receipt = answer.model_extra["penstock"]
    assert house.ledger.posted_nano_usd == receipt["cost_nano_usd"] > 0
    assert ("local", "small", "local_first", "miss") == (
        receipt["provider"],
        receipt["model"],
        receipt["reason"],
        receipt["cache"],
    )
    assert 100 == receipt["max_tokens"]
    assert str(receipt["cost_nano_usd"]) == raw.headers["x-penstock-cost-nano-usd"]
    assert receipt["reservation_id"] == raw.headers["x-penstock-reservation-id"]
    assert ("10", "0", "3") == tuple(
        raw.headers[f"x-penstock-{kind}-tokens"]
        for kind in ("prompt", "cached-prompt", "completion")
    )
    assert receipt["request_id"] == raw.headers["x-request-id"] == raw.request_id


async def test_second_identical_request_is_a_hit_at_no_cost(sdk: openai.AsyncOpenAI) -> None:
    await sdk.chat.completions.create(model="auto", messages=HELLO, temperature=0)
    again = await sdk.chat.completions.create(model="auto", messages=HELLO, temperature=0)
    receipt = again.model_extra["penstock"]
    assert ("cache", "hit", 0) == (receipt["provider"], receipt["cache"], receipt["cost_nano_usd"])
    assert receipt["saved_nano_usd"] > 0


async def test_cache_control_no_cache_goes_past_a_stored_answer(
    house: FrontHouse, sdk: openai.AsyncOpenAI
) -> None:
    ask = {"model": "auto", "messages": HELLO, "temperature": 0}
    await sdk.chat.completions.create(**ask)
    fresh = await sdk.chat.completions.create(**ask, extra_headers={"Cache-Control": "no-cache"})
    assert "bypass" == fresh.model_extra["penstock"]["cache"]
    assert 2 == len(house.local.calls)


async def test_stream_ends_with_the_receipt_in_the_last_chunk(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(model="auto", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.choices for chunk in chunks)
    assert "assistant" == chunks[0].choices[0].delta.role
    assert "hi there" == "".join(c.choices[0].delta.content or "" for c in chunks)
    assert "stop" == chunks[-1].choices[0].finish_reason
    assert "local" == chunks[-1].model_extra["penstock"]["provider"]
    assert all("penstock" not in (c.model_extra or {}) for c in chunks[:-1])


async def test_a_stored_answer_is_replayed_as_a_stream(
    house: FrontHouse, sdk: openai.AsyncOpenAI
) -> None:
    house.local.script = text_answer("word " * 400)
    await sdk.chat.completions.create(model="auto", messages=HELLO)
    stream = await sdk.chat.completions.create(model="auto", messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "word " * 400 == "".join(texts)
    assert [PIECE_CHARACTERS] * 7 + [2_000 - 7 * PIECE_CHARACTERS, 0] == [len(t) for t in texts]
    assert "stop" == chunks[-1].choices[0].finish_reason
    assert "hit" == chunks[-1].model_extra["penstock"]["cache"]


async def test_stream_with_include_usage_ends_with_a_chunk_of_usage(
    sdk: openai.AsyncOpenAI,
) -> None:
    stream = await sdk.chat.completions.create(
        model="auto", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [] == chunks[-1].choices
    assert 13 == chunks[-1].usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].model_extra["penstock"]["cost_nano_usd"] > 0


async def test_stream_tells_known_headers_at_once_and_ends_with_done(
    http: httpx.AsyncClient,
) -> None:
    body = {"model": "auto", "messages": HELLO, "stream": True}
    answer = await http.post("/v1/chat/completions", json=body)
    assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
    assert "local" == answer.headers["x-penstock-provider"]
    assert "small" == answer.headers["x-penstock-model"]
    assert answer.headers["x-penstock-request-id"].startswith("req_")
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_n_tools_and_logprobs_are_told_as_openai_does(
    house: FrontHouse, sdk: openai.AsyncOpenAI
) -> None:
    call = ToolCallDelta(index=0, id="call_1", name="look", arguments_json='{"a"')
    rest = ToolCallDelta(index=0, arguments_json=":1}")
    token = TokenLogprob(
        token="x",
        logprob=-0.5,
        token_bytes=b"x",
        top_logprobs=[TopLogprob(token="y", logprob=-1, token_bytes=b"y")],
    )
    house.local.script = [
        Chunk([ChoiceDelta(index=0, tool_calls=[call])]),
        Chunk([ChoiceDelta(index=1, content="x", logprobs=[token])]),
        Chunk([ChoiceDelta(index=0, tool_calls=[rest])]),
        Chunk(
            [
                ChoiceDelta(index=0, finish_reason=FINISH_REASON_TOOL_CALLS),
                ChoiceDelta(index=1, finish_reason=FINISH_REASON_STOP),
            ]
        ),
        Chunk(usage=Usage(prompt_tokens=1, completion_tokens=2)),
    ]
    ask = {
        "model": "auto",
        "messages": HELLO,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 1,
        "tools": [{"type": "function", "function": {"name": "look"}}],
    }
    answer = await sdk.chat.completions.create(**ask)
    made = answer.choices[0].message.tool_calls[0]
    assert ("call_1", "look", '{"a":1}') == (made.id, made.function.name, made.function.arguments)
    assert (None, "tool_calls") == (
        answer.choices[0].message.content,
        answer.choices[0].finish_reason,
    )
    told = answer.choices[1].logprobs.content[0]
    assert ("x", -0.5, "y") == (told.token, told.logprob, told.top_logprobs[0].token)
    assert 2 == house.local.calls[0].input.n

    async with sdk.chat.completions.stream(**ask) as stream:
        async for _ in stream:
            pass
        whole = await stream.get_final_completion()
    assert '{"a":1}' == whole.choices[0].message.tool_calls[0].function.arguments
    assert "x" == whole.choices[1].message.content


async def test_completions_continue_a_raw_prompt(
    house: FrontHouse, sdk: openai.AsyncOpenAI
) -> None:
    answer = await sdk.completions.create(model="local/small", prompt="Once", max_tokens=5)
    assert "hi there" == answer.choices[0].text
    assert "Once" == house.local.calls[0].input.prompt
    assert 5 == house.local.calls[0].input.max_tokens
    stream = await sdk.completions.create(model="local/small", prompt="Twice", stream=True)
    assert "hi there" == "".join([c.choices[0].text async for c in stream])


async def test_completions_tell_where_each_token_stands_streamed_or_not(
    house: FrontHouse, sdk: openai.AsyncOpenAI
) -> None:
    tokens = [TokenLogprob(token=text, logprob=-1.0) for text in ("Once", " upon", " a", " time")]
    house.local.script = [
        Chunk([ChoiceDelta(content="Once upon", logprobs=tokens[:2])]),
        Chunk([ChoiceDelta(content=" a", logprobs=tokens[2:3])]),
        Chunk([ChoiceDelta(content=" time", logprobs=tokens[3:])]),
        *text_answer("")[1:],
    ]
    ask = {"model": "local/small", "prompt": "Tell", "logprobs": 1}
    no_cache = {"Cache-Control": "no-cache, no-store"}
    whole = await sdk.completions.create(**ask, extra_headers=no_cache)
    stream = await sdk.completions.create(**ask, extra_headers=no_cache, stream=True)
    found = [c.choices[0].logprobs async for c in stream]
    offsets = [at for logprobs in found if logprobs for at in logprobs.text_offset]
    assert [0, 4, 9, 11] == whole.choices[0].logprobs.text_offset == offsets


async def test_models_are_those_the_key_may_use(house: FrontHouse, sdk: openai.AsyncOpenAI) -> None:
    names = {model.id async for model in sdk.models.list()}
    assert {"auto", "own", "local/small", "acme/large", "acme/thinker"} == names
    small = await sdk.models.retrieve("local/small")
    assert 1000 == small.model_extra["penstock"]["context_tokens"]
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("local/none")
    house.quota.put("ps-narrow", allowed_models=["local/*"])
    narrow = sdk.with_options(api_key="ps-narrow")
    assert {"auto", "own", "local/small"} == {model.id async for model in narrow.models.list()}


async def test_wrong_key_is_an_authentication_error(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        await sdk.with_options(api_key="ps-wrong").chat.completions.create(
            model="auto", messages=HELLO
        )
    assert "invalid_api_key" == caught.value.code


async def test_unknown_model_is_not_found_and_says_what_there_is(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.chat.completions.create(model="small", messages=HELLO)
    assert ("model_not_found", "model") == (caught.value.code, caught.value.param)
    assert "Did you mean local/small?" in caught.value.message


async def test_spent_budget_is_insufficient_quota_and_is_not_retried(
    sdk: openai.AsyncOpenAI, house: FrontHouse
) -> None:
    house.ledger.limit_nano_usd = 0
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.with_options(max_retries=2).chat.completions.create(model="auto", messages=HELLO)
    assert "insufficient_quota" == caught.value.code
    assert "false" == caught.value.response.headers["x-should-retry"]
    assert [] == house.local.calls


async def test_full_pool_says_when_to_come_again(
    sdk: openai.AsyncOpenAI, house: FrontHouse
) -> None:
    full = CapacityExhausted("full", retry_after_seconds=1.2)
    house.local.script = [AttemptFailed(full, billing=Billing.NOTHING, fall_back=True)]
    with pytest.raises(openai.RateLimitError) as caught:
        await sdk.chat.completions.create(model="local/small", messages=HELLO)
    headers = caught.value.response.headers
    assert ("2", "1200") == (headers["retry-after"], headers["retry-after-ms"])
    assert "rate_limit_exceeded" == caught.value.code


@pytest.mark.parametrize("stream", [False, True])
async def test_error_before_the_first_token_has_its_status(
    sdk: openai.AsyncOpenAI, house: FrontHouse, stream: bool
) -> None:
    broken = StreamBroken("broke")
    house.local.script = [AttemptFailed(broken, billing=Billing.NOTHING, fall_back=False)]
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.chat.completions.create(model="local/small", messages=HELLO, stream=stream)
    assert 502 == caught.value.status_code


async def test_error_in_mid_stream_is_an_error_event_without_done(
    sdk: openai.AsyncOpenAI, house: FrontHouse, http: httpx.AsyncClient
) -> None:
    failed = AttemptFailed(StreamBroken("broke off"), billing=Billing.UNKNOWN, fall_back=False)
    half = Chunk([ChoiceDelta(content="half")], prompt_tokens=9, completion_tokens_so_far=1)
    house.local.script = [half, failed]
    stream = await sdk.chat.completions.create(model="local/small", messages=HELLO, stream=True)
    chunks = aiter(stream)
    assert "half" == (await anext(chunks)).choices[0].delta.content
    with pytest.raises(openai.APIError) as caught:
        await anext(chunks)
    assert "broke off" == caught.value.message
    body = {"model": "local/small", "messages": HELLO, "stream": True}
    text = (await http.post("/v1/chat/completions", json=body)).text
    last = json.loads(text.strip().rpartition("data: ")[2])
    assert "STREAM_BROKEN" == last["penstock"]["reason"]
    assert int(last["penstock"]["metadata"]["cost_nano_usd"]) > 0
    assert "[DONE]" not in text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chunks", [0, 1])
async def test_hang_up_stops_the_upstream_at_once_and_is_settled(
    house: FrontHouse, stream: bool, chunks: int
) -> None:
    house.local.script = [*[Chunk([ChoiceDelta(content="a")])] * chunks, None]
    body = json.dumps({"model": "local/small", "messages": HELLO, "stream": stream})
    reader, writer = await asyncio.open_connection("127.0.0.1", house.fronts.http.port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
    )
    async with asyncio.timeout(5):
        if stream and chunks:
            await reader.readuntil(b'"content":"a"')
        await until(lambda: house.local.calls)
    assert 0 == house.local.closed_early
    writer.close()
    assert ["CLIENT_GONE"] == await house.resolved()
    assert 1 == house.local.closed_early


async def test_first_token_is_not_held_back_for_coalescing(
    house: FrontHouse, http: httpx.AsyncClient
) -> None:
    house.local.script = [Chunk([ChoiceDelta(content="first")]), None]
    body = {"model": "local/small", "messages": HELLO, "stream": True}
    async with asyncio.timeout(5), http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if '"first"' in line:
                break
    await house.resolved()


async def test_deadline_of_the_header_ends_the_request(
    house: FrontHouse, http: httpx.AsyncClient
) -> None:
    house.local.script = [Chunk([ChoiceDelta(content="a")]), None]
    answer = await http.post(
        "/v1/chat/completions",
        json={"model": "local/small", "messages": HELLO},
        headers={"x-penstock-timeout-ms": "150"},
    )
    assert 504 == answer.status_code
    assert "deadline_exceeded" == answer.json()["error"]["code"]
    await house.resolved()
    assert 1 == house.local.closed_early


async def test_traceparent_of_the_caller_reaches_the_upstream(
    house: FrontHouse, http: httpx.AsyncClient
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await http.post(
        "/v1/chat/completions",
        json={"model": "auto", "messages": HELLO},
        headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"},
    )
    assert trace_id == answer.json()["penstock"]["trace_id"]
    assert trace_id in house.local.calls[0].traceparent


async def test_health_and_readiness(house: FrontHouse, http: httpx.AsyncClient) -> None:
    assert 200 == (await http.get("/healthz")).status_code
    assert 200 == (await http.get("/readyz")).status_code
    await house.health.set("accepting", ok=False)
    unready = await http.get("/readyz")
    assert (503, ["accepting"]) == (unready.status_code, unready.json()["waiting_for"])
    assert 200 == (await http.get("/healthz")).status_code


async def test_port_in_use_is_said_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PortInUse, match="PENSTOCK_ROUTER_HTTP_LISTEN"):
            await HttpServer(address, None).start()  # type: ignore[arg-type]
