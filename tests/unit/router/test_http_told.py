"""What OpenAI's SDK is told of a request that fails, and does of it by itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import httpx
import openai
import pytest

from penstock.core.errors import UpstreamFailed
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.backends.base import AttemptFailed, Billing
from support.chat import CATALOGUE_YAML, catalogue
from support.clock import HandClock
from support.fronts import FrontHouse, front_house
from support.quota_server import KEY

HELLO = [{"role": "user", "content": "hello"}]
LOOK = {"type": "function", "function": {"name": "look"}}


@pytest.fixture
async def house() -> AsyncIterator[FrontHouse]:
    async with front_house() as found:
        yield found


@pytest.fixture
async def sdk(house: FrontHouse) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{house.url}/v1", max_retries=2) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_that_was_charged_is_not_repeated(
    house: FrontHouse, sdk: openai.AsyncOpenAI, stream: bool
) -> None:
    silent = UpstreamFailed("silent", reason="UPSTREAM_TIMEOUT")
    house.paid.script = [AttemptFailed(silent, billing=Billing.UNKNOWN, fall_back=True)]
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.chat.completions.create(model="acme/large", messages=HELLO, stream=stream)
    headers = caught.value.response.headers
    assert (502, "false") == (caught.value.status_code, headers["x-should-retry"])
    assert house.ledger.posted_nano_usd == int(headers["x-penstock-cost-nano-usd"]) > 0
    assert 1 == len(house.paid.calls)


async def test_a_failure_that_cost_nothing_is_repeated(
    house: FrontHouse, sdk: openai.AsyncOpenAI
) -> None:
    down = UpstreamFailed("down", retry_after_seconds=0.001)
    house.paid.script = [AttemptFailed(down, billing=Billing.NOTHING, fall_back=True)]
    with pytest.raises(openai.APIStatusError):
        await sdk.chat.completions.create(model="acme/large", messages=HELLO)
    assert 3 == len(house.paid.calls)


@pytest.mark.parametrize(
    ("state", "kind", "code"),
    [
        (Principal.STATE_REVOKED, openai.AuthenticationError, "invalid_api_key"),
        (Principal.STATE_EXPIRED, openai.AuthenticationError, "invalid_api_key"),
        (Principal.STATE_SUSPENDED, openai.PermissionDeniedError, "account_suspended"),
    ],
)
async def test_a_key_that_may_not_go_on_says_which(
    house: FrontHouse,
    sdk: openai.AsyncOpenAI,
    state: Principal.State,
    kind: type[openai.APIStatusError],
    code: str,
) -> None:
    house.quota.put(state=state)
    with pytest.raises(kind) as caught:
        await sdk.chat.completions.create(model="auto", messages=HELLO)
    assert code == caught.value.code


async def test_tools_go_past_a_model_that_cannot_call_them(
    house: FrontHouse, sdk: openai.AsyncOpenAI
) -> None:
    house.catalogue = catalogue(
        CATALOGUE_YAML.replace("supports_tools: true", "supports_tools: false")
    )
    answer = await sdk.chat.completions.create(model="auto", messages=HELLO, tools=[LOOK])
    assert "acme" == answer.model_extra["penstock"]["provider"]
    unused = await sdk.chat.completions.create(
        model="auto", messages=HELLO, tools=[LOOK], tool_choice="none"
    )
    assert "local" == unused.model_extra["penstock"]["provider"]
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(model="local/small", messages=HELLO, tools=[LOOK])
    assert "tools" == caught.value.param
    assert "local/small" in caught.value.message
    small = await sdk.models.retrieve("local/small")
    assert small.model_extra["penstock"]["supports_tools"] is False


@asynccontextmanager
async def slow_house() -> AsyncIterator[
    tuple[FrontHouse, Callable[[int], Awaitable[httpx.Response]]]
]:
    """Its key takes 100 s and the body 50 s; and the way to ask it with so many ms to live."""
    clock, asked = HandClock(), asyncio.Event()
    async with front_house(clock=clock) as house, httpx.AsyncClient(base_url=house.url) as http:
        found = house.principals.of

        async def slow(headers: Mapping[str, str]) -> Principal:
            clock.now += 100
            asked.set()
            return await found(headers)

        async def body() -> AsyncIterator[bytes]:
            yield b'{"model": "local/small", '
            await asked.wait()
            clock.now += 50
            yield b'"messages": [{"role": "user", "content": "hello"}]}'

        async def ask(timeout_ms: int) -> httpx.Response:
            headers = {
                "authorization": f"Bearer {KEY}",
                "content-type": "application/json",
                "x-penstock-timeout-ms": str(timeout_ms),
            }
            return await http.post("/v1/chat/completions", content=body(), headers=headers)

        house.principals.of = slow  # type: ignore[method-assign]
        yield house, ask


async def test_the_key_and_the_body_come_out_of_the_callers_time() -> None:
    async with slow_house() as (house, ask):
        assert 200 == (await ask(300_000)).status_code
        assert 150 == house.local.calls[0].deadline.remaining_seconds()


async def test_whose_time_is_over_before_it_could_begin_holds_nothing() -> None:
    async with slow_house() as (house, ask):
        answer = await ask(120_000)
        assert (504, "DEADLINE_EXCEEDED") == (
            answer.status_code,
            answer.headers["x-penstock-error-reason"],
        )
        assert ([], []) == (house.ledger.reserves, house.local.calls)
