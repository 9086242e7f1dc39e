import asyncio
from collections.abc import AsyncGenerator

import pytest

from penstock.core.errors import Unavailable
from penstock.local.coalesce import coalesce
from penstock.local.engines.base import Delta
from penstock.local.v1 import local_pb2
from penstock.type.v1 import chat_pb2

NEVER_SECONDS = 3600.0


class Source:
    """Deltas that a test hands out."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        self.closed = False

    def put(self, *items: Delta | Exception | None) -> None:
        for item in items:
            self.queue.put_nowait(item)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


def token(made: int, index: int = 0, finish: bool = False) -> Delta:
    piece = chat_pb2.ChoiceDelta(index=index, content=f"t{made} ")
    if finish:
        piece.finish_reason = chat_pb2.FINISH_REASON_STOP
    return Delta(choices=(piece,), prompt_tokens=5, completion_tokens=made)


def texts(message: local_pb2.GenerateResponse) -> dict[int, str]:
    return {d.index: d.content for d in message.deltas}


async def test_the_first_token_goes_out_at_once() -> None:
    source = Source()
    messages = coalesce(source.deltas(), window_seconds=NEVER_SECONDS)
    source.put(token(1))
    assert texts(await asyncio.wait_for(anext(messages), 5)) == {0: "t1 "}
    await messages.aclose()


async def test_tokens_whose_text_is_held_back_are_sent_once_a_window() -> None:
    source = Source()
    messages = coalesce(source.deltas(), window_seconds=NEVER_SECONDS)
    source.put(Delta(prompt_tokens=5, completion_tokens=1))
    assert (await asyncio.wait_for(anext(messages), 5)).completion_tokens_so_far == 1
    source.put(Delta(prompt_tokens=5, completion_tokens=2), token(3), None)
    # The end flushes the window.
    assert (await asyncio.wait_for(anext(messages), 5)).completion_tokens_so_far == 3
    assert [m async for m in messages] == []


async def test_the_prompts_count_does_not_hold_up_the_first_token() -> None:
    source = Source()
    messages = coalesce(source.deltas(), window_seconds=NEVER_SECONDS)
    source.put(Delta(prompt_tokens=5))
    assert (await asyncio.wait_for(anext(messages), 5)).prompt_tokens == 5
    source.put(token(1))
    assert texts(await asyncio.wait_for(anext(messages), 5)) == {0: "t1 "}
    await messages.aclose()


async def test_what_comes_within_a_window_is_one_message_with_the_last_totals() -> None:
    source = Source()
    messages = coalesce(source.deltas(), window_seconds=0.05)
    source.put(token(1))
    await anext(messages)
    source.put(token(2), token(3, index=1), token(4), token(5, finish=True))
    message = await anext(messages)
    assert texts(message) == {0: "t2 t4 t5 ", 1: "t3 "}
    assert message.completion_tokens_so_far == 5
    assert message.prompt_tokens == 5
    assert message.deltas[0].finish_reason == chat_pb2.FINISH_REASON_STOP
    await messages.aclose()


async def test_a_window_ends_though_no_more_comes() -> None:
    source = Source()
    messages = coalesce(source.deltas(), window_seconds=0.01)
    source.put(token(1))
    await anext(messages)
    source.put(token(2))
    assert texts(await asyncio.wait_for(anext(messages), 5)) == {0: "t2 "}
    await messages.aclose()


async def test_the_end_is_not_held_back() -> None:
    source = Source()
    usage = chat_pb2.Usage(prompt_tokens=5, completion_tokens=2)
    source.put(token(1), token(2), Delta(prompt_tokens=5, completion_tokens=2, usage=usage), None)
    messages = coalesce(source.deltas(), window_seconds=NEVER_SECONDS)
    got = [m async for m in messages]
    assert [m.HasField("usage") for m in got] == [False, True]
    assert got[-1].usage == usage
    assert "".join(t for m in got for t in texts(m).values()) == "t1 t2 "


async def test_what_came_before_an_error_is_sent_before_it() -> None:
    source = Source()
    source.put(token(1), token(2), Unavailable("gone"))
    messages = coalesce(source.deltas(), window_seconds=NEVER_SECONDS)
    assert texts(await anext(messages)) == {0: "t1 "}
    assert texts(await anext(messages)) == {0: "t2 "}
    with pytest.raises(Unavailable):
        await anext(messages)


async def test_closing_it_closes_the_engine_though_a_token_is_awaited() -> None:
    source = Source()
    messages = coalesce(source.deltas(), window_seconds=0.01)
    source.put(token(1))
    await anext(messages)
    await messages.aclose()
    assert source.closed


async def test_cancelling_its_reader_closes_the_engine() -> None:
    source = Source()
    messages = coalesce(source.deltas(), window_seconds=0.01)
    reader = asyncio.ensure_future(anext(messages))
    for _ in range(3):
        await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert source.closed
