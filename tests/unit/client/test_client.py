import asyncio
import importlib
from collections.abc import AsyncIterator

import pytest

import penstock.client
from penstock.client import (
    BudgetExceeded,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    PenstockError,
    Retry,
    StreamBroken,
    Unauthenticated,
    Unavailable,
    UpstreamFailed,
    assistant,
    function,
    image,
    system,
    tool,
    user,
)
from penstock.core import errors
from penstock.router.backends.base import AttemptFailed, Billing, Chunk
from penstock.type.v1.chat_pb2 import ChoiceDelta, Role, ToolCall
from support.fronts import FrontHouse, front_house
from support.ports import text_answer
from support.quota_server import KEY
from support.wait import until

CHARGED = AttemptFailed(
    UpstreamFailed("silent", reason="UPSTREAM_TIMEOUT"), billing=Billing.UNKNOWN, fall_back=True
)
DOWN = AttemptFailed(UpstreamFailed("down"), billing=Billing.NOTHING, fall_back=False)


class Pauses:
    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
async def house() -> AsyncIterator[FrontHouse]:
    async with front_house() as found:
        yield found


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
async def client(house: FrontHouse, pauses: Pauses) -> AsyncIterator[Client]:
    retry = Retry(sleep=pauses, jitter=lambda: 1.0)
    async with Client(house.fronts.grpc.address, KEY, retry=retry) as found:
        yield found


def test_all_names_exactly_what_is_public() -> None:
    public = {
        name
        for name, value in vars(penstock.client).items()
        if not name.startswith("_") and not isinstance(value, type(importlib))
    }
    assert public == set(penstock.client.__all__)
    assert sorted(penstock.client.__all__) == penstock.client.__all__


def test_every_error_class_is_exported() -> None:
    kinds = {kind.__name__ for kind in PenstockError.__subclasses__()} | {"PenstockError"}
    assert kinds <= set(penstock.client.__all__)
    assert errors.BudgetExceeded is BudgetExceeded


async def test_reply_tells_text_usage_and_cost(house: FrontHouse, client: Client) -> None:
    reply = await client.generate("auto", [system("Be short."), user("hi")], max_tokens=20)
    assert ("hi there", "stop") == (reply.text, reply.finish_reason)
    assert ("local", "small", "local_first") == (reply.provider, reply.model, reply.reason)
    assert house.ledger.posted_nano_usd == reply.cost_nano_usd > 0
    assert reply.saved_nano_usd == reply.baseline_cost_nano_usd - reply.cost_nano_usd
    assert reply.request_id == house.local.calls[0].request_id
    again = await client.generate("auto", [system("Be short."), user("hi")], max_tokens=20)
    assert (True, 0) == (again.is_cached, again.cost_nano_usd)


async def test_every_option_arrives(house: FrontHouse, client: Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await client.generate(
        "local/small",
        [
            user("look"),
            assistant(tool_calls=[ToolCall(id="c1", name="look", arguments_json="{}")]),
            tool("c1", "seen"),
        ],
        n=2,
        stop=["."],
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        seed=7,
        logprobs=True,
        top_logprobs=2,
        logit_bias={5: -1.5},
        tools=[function("look", "looks", schema)],
        tool_choice="look",
        parallel_tool_calls=False,
        json_schema=schema,
        max_tokens=9,
        local_only=True,
        no_cache=True,
        user="u-1",
        metadata={"team": "blue"},
        client_request_id="mine-1",
    )
    sent = house.local.calls[0].input
    assert [Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_TOOL] == [m.role for m in sent.messages]
    assert (2, 0.5, 0.9, 0.1, 0.2, 7) == (
        sent.n,
        sent.temperature,
        sent.top_p,
        sent.presence_penalty,
        sent.frequency_penalty,
        sent.seed,
    )
    assert (["."], {5: -1.5}, 9) == (list(sent.stop), dict(sent.logit_bias), sent.max_tokens)
    assert ("look", False, 2) == (
        sent.tool_choice.function_name,
        sent.parallel_tool_calls,
        sent.top_logprobs,
    )
    assert '"integer"' in sent.response_format.schema_json


async def test_images_and_raw_prompts_are_short_to_write(house: FrontHouse, client: Client) -> None:
    await client.generate("local/small", "Once upon", max_tokens=5)
    assert "Once upon" == house.local.calls[0].input.prompt
    with pytest.raises(InvalidRequest) as caught:
        await client.generate("local/small", [user("what is it?", image("http://x/y.png"))])
    assert "input.messages[0].content[1].image_url.url" == caught.value.violations[0].field


async def test_stream_gives_pieces_and_then_the_cost(house: FrontHouse, client: Client) -> None:
    async with client.stream("auto", [user("hi")]) as stream:
        text = "".join([piece.text async for piece in stream])
    assert "hi there" == text == stream.reply.text
    assert ("local", "small") == (stream.provider, stream.model)
    assert house.ledger.posted_nano_usd == stream.reply.cost_nano_usd > 0
    assert stream.reply.response.created_unix_seconds > 1_700_000_000


async def test_leaving_a_stream_stops_the_model(house: FrontHouse, client: Client) -> None:
    house.local.script = [Chunk([ChoiceDelta(content="a")]), None]
    async with client.stream("local/small", [user("hi")]) as stream:
        assert "a" == (await anext(stream)).text
    assert ["CLIENT_GONE"] == await house.resolved()
    with pytest.raises(RuntimeError, match="not ended"):
        _ = stream.reply


async def test_cancelling_the_task_stops_the_model(house: FrontHouse, client: Client) -> None:
    house.local.script = [None]
    task = asyncio.create_task(client.generate("local/small", [user("hi")]))
    await until(lambda: house.local.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ["CLIENT_GONE"] == await house.resolved()


async def test_errors_are_classes_with_reasons(house: FrontHouse, client: Client) -> None:
    house.ledger.limit_nano_usd = 0
    with pytest.raises(BudgetExceeded):
        await client.generate("auto", [user("hi")])
    async with Client(house.fronts.grpc.address, "ps-wrong") as stranger:
        with pytest.raises(Unauthenticated) as caught:
            await stranger.models()
    assert "KEY_UNKNOWN" == caught.value.reason


@pytest.mark.parametrize("streaming", [False, True])
async def test_unavailable_is_repeated_with_growing_pauses(
    house: FrontHouse, client: Client, pauses: Pauses, streaming: bool
) -> None:
    house.local.script = [DOWN]

    async def ask() -> None:
        if streaming:
            async for _ in client.stream("local/small", [user("hi")]):
                pass
        else:
            await client.generate("local/small", [user("hi")])

    with pytest.raises(UpstreamFailed):
        await ask()
    assert ([0.1, 0.2], 3) == (pauses.seconds, len(house.local.calls))

    async def mend(seconds: float) -> None:
        house.local.script = text_answer()

    client._retry = Retry(sleep=mend)
    await ask()


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_failure_that_was_charged_is_not_repeated(
    house: FrontHouse, client: Client, pauses: Pauses, streaming: bool
) -> None:
    house.paid.script = [CHARGED]
    with pytest.raises(Unavailable) as caught:
        await (
            anext(client.stream("acme/large", [user("hi")]))
            if streaming
            else client.generate("acme/large", [user("hi")])
        )
    assert ([], 1) == (pauses.seconds, len(house.paid.calls))
    assert house.ledger.posted_nano_usd == caught.value.cost_nano_usd > 0


async def test_a_request_that_is_too_large_is_never_told_to_come_again(
    house: FrontHouse, client: Client
) -> None:
    for characters in (9_000_000, 40_000_000):  # beyond what the router, and what the client takes
        with pytest.raises(InvalidRequest, match="Send less") as caught:
            await client.generate("auto", [user("a" * characters)])
        assert ("REQUEST_TOO_LARGE", None) == (
            caught.value.reason, caught.value.retry_after_seconds,
        )  # fmt: skip


async def test_stream_that_broke_is_not_repeated(
    house: FrontHouse, client: Client, pauses: Pauses
) -> None:
    half = Chunk([ChoiceDelta(content="half")])
    broke = AttemptFailed(StreamBroken("broke"), billing=Billing.UNKNOWN, fall_back=True)
    house.local.script = [half, broke]
    with pytest.raises(StreamBroken):
        async for _ in client.stream("auto", [user("hi")]):
            pass
    assert ([], 1) == (pauses.seconds, len(house.local.calls))


async def test_no_router_is_unavailable_within_the_deadline(pauses: Pauses) -> None:
    async with Client("127.0.0.1:1", KEY, retry=Retry(sleep=pauses)) as client:
        with pytest.raises(Unavailable):
            await client.generate("auto", [user("hi")], timeout_seconds=5)
    assert 2 == len(pauses.seconds)


async def test_deadline_covers_the_whole_call(house: FrontHouse, client: Client) -> None:
    house.local.script = [None]
    with pytest.raises(DeadlineExceeded):
        await client.generate("local/small", [user("hi")], timeout_seconds=0.2)
    await house.resolved()


def test_no_pause_is_longer_than_the_time_left() -> None:
    retry = Retry(jitter=lambda: 1.0)
    told = Unavailable("come later", retry_after_seconds=5)
    assert 5 == retry.pause_after(1, told, left_seconds=6)
    assert retry.pause_after(1, told, left_seconds=4) is None
    assert retry.pause_after(3, told, left_seconds=6) is None
    assert retry.pause_after(1, InvalidRequest("no"), left_seconds=6) is None


async def test_models_and_explain(house: FrontHouse, client: Client) -> None:
    assert "auto" in [model.id for model in await client.models()]
    plan = await client.explain("auto", [user("hi")], max_tokens=5)
    assert 5 == plan.attempts[0].max_tokens
    assert [] == house.local.calls


@pytest.mark.parametrize("method", ["generate", "stream", "explain"])
async def test_an_option_that_there_is_not_is_refused_by_name(client: Client, method: str) -> None:
    with pytest.raises(TypeError, match=r"no option 'timeout'; did you mean 'timeout_seconds'\?"):
        await getattr(client, method)("auto", [user("hi")], timeout=3)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
async def test_a_time_less_than_zero_or_no_number_is_refused(
    client: Client, seconds: float
) -> None:
    with pytest.raises(ValueError, match="timeout_seconds"):
        await client.generate("auto", [user("hi")], timeout_seconds=seconds)
    with pytest.raises(ValueError, match="timeout_seconds"):
        Client("127.0.0.1:1", KEY, timeout_seconds=seconds)


async def test_time_without_end_is_no_limit(client: Client) -> None:
    assert (await client.generate("auto", [user("hi")], timeout_seconds=float("inf"))).text
