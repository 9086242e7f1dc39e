"""The HTTP front while its router is asked to stop."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from penstock.router.backends.base import Chunk
from penstock.type.v1.chat_pb2 import ChoiceDelta
from support.fronts import FrontHouse, front_house
from support.ports import ScriptedBackend, text_answer
from support.quota_server import KEY
from support.wait import until

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def house() -> AsyncIterator[FrontHouse]:
    async with front_house() as found:
        yield found


@pytest.fixture
async def http(house: FrontHouse) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=house.url, headers=headers) as client:
        yield client


async def test_drain_lets_a_stream_end_and_refuses_new_requests(
    house: FrontHouse, http: httpx.AsyncClient
) -> None:
    gate = asyncio.Event()

    class Gated(ScriptedBackend):
        async def generate(self, call):
            yield Chunk([ChoiceDelta(content="one ")])
            await gate.wait()
            for chunk in text_answer("two"):
                yield chunk

    house.local.generate = Gated([]).generate
    body = {"model": "local/small", "messages": HELLO, "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if "one " in line:
                break
        drain = asyncio.create_task(house.fronts.drain(5))
        await until(lambda: not house.health.ready)
        assert "ROUTER_DRAINING" == await refusal_until_closed(house, body)
        gate.set()
        text = "\n".join([line async for line in lines])
    assert "two" in text
    assert text.rstrip().endswith("data: [DONE]")
    async with asyncio.timeout(5):
        await drain
    assert {} == house.ledger.held


async def test_drain_cuts_off_what_outlives_the_grace_and_settles_it(
    house: FrontHouse, http: httpx.AsyncClient
) -> None:
    house.local.script = [Chunk([ChoiceDelta(content="a")]), None]
    body = {"model": "local/small", "messages": HELLO, "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if '"a"' in line:
                break
        async with asyncio.timeout(5):
            await house.fronts.drain(0.05)
        text = "\n".join([line async for line in lines])
    assert '"ROUTER_DRAINING"' in text
    assert ["ROUTER_DRAINING"] == await house.resolved()


async def refusal_until_closed(house: FrontHouse, body: dict) -> str:
    """What new requests are told while the port closes, which takes a moment."""
    told = "ROUTER_DRAINING"
    headers = {"authorization": f"Bearer {KEY}"}
    async with asyncio.timeout(2), httpx.AsyncClient(headers=headers) as other:
        try:
            while told == "ROUTER_DRAINING":
                answer = await other.post(f"{house.url}/v1/chat/completions", json=body)
                told = answer.json()["penstock"]["reason"]
        except httpx.TransportError:
            pass
    return told
