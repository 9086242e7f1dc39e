"""Requests of the suite, and what came of one."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from penstock.local.engines.base import Delta
from penstock.type.v1 import chat_pb2

LONG_STORY = "Write a very long story about the sea, with many chapters."

A, FIRST_BYTE = 81, 189
"""Tokens of SmolLM2, in every format of it: "a", and the first byte of a character of four."""

HELD_BACK: dict[str, dict[str, Any]] = {
    "by a stop sequence": {"stop": ["a" * 512], "logit_bias": {A: 100.0}},
    "by a broken character": {"logit_bias": {FIRST_BYTE: 100.0}},
}
"""What makes a model generate text that cannot be given out yet."""


def ask(text: str, **fields: Any) -> chat_pb2.ChatInput:
    content = [chat_pb2.ContentPart(text=text)]
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, content=content)
    return chat_pb2.ChatInput(messages=[message], **{"max_tokens": 16, "temperature": 0, **fields})


@dataclass
class Answer:
    deltas: list[Delta] = field(default_factory=list)

    def text(self, index: int = 0) -> str:
        return "".join(c.content for c in self.pieces(index))

    def pieces(self, index: int = 0) -> list[chat_pb2.ChoiceDelta]:
        return [c for d in self.deltas for c in d.choices if c.index == index]

    def finish_reason(self, index: int = 0) -> int:
        return next(c.finish_reason for c in self.pieces(index) if c.finish_reason)

    @property
    def usage(self) -> chat_pb2.Usage:
        last = self.deltas[-1].usage
        assert last is not None
        return last


async def collect(deltas: AsyncIterator[Delta]) -> Answer:
    return Answer([d async for d in deltas])
