"""An engine whose tokens a test hands out one by one; it speaks `Engine` and knows no model."""

import asyncio
from collections.abc import AsyncGenerator

from penstock.core.errors import PenstockError
from penstock.local.engines.base import Delta, EngineStats, choice_count
from penstock.type.v1 import chat_pb2


class FakeEngine:
    """`release(k)` lets k tokens go to each running request; `error` makes the next ones fail."""

    name = "fake"

    def __init__(self) -> None:
        self.running = 0
        self.began = asyncio.Event()
        self.closed_early = 0
        self.error: PenstockError | None = None
        self.ill: PenstockError | None = None
        self._tokens: list[asyncio.Queue[None]] = []

    async def start(self) -> None:
        pass

    def release(self, tokens: int) -> None:
        for queue in self._tokens:
            for _ in range(tokens):
                queue.put_nowait(None)

    async def generate(
        self, chat: chat_pb2.ChatInput, *, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        tokens: asyncio.Queue[None] = asyncio.Queue()
        self._tokens.append(tokens)
        self.running += 1
        self.began.set()
        ended = False
        try:
            for made in range(1, chat.max_tokens + 1):
                await tokens.get()
                if self.error is not None:
                    raise self.error
                piece = chat_pb2.ChoiceDelta(content=f"{made} ")
                yield Delta(choices=(piece,), prompt_tokens=7, completion_tokens=made)
            made = chat.max_tokens * choice_count(chat)
            usage = chat_pb2.Usage(prompt_tokens=7, completion_tokens=made)
            yield Delta(prompt_tokens=7, completion_tokens=made, usage=usage)
            ended = True
        finally:
            self.closed_early += not ended
            self.running -= 1
            self._tokens.remove(tokens)

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, tokens_per_second=50.0)

    async def check_health(self) -> None:
        if self.ill is not None:
            raise self.ill

    async def close(self) -> None:
        pass
