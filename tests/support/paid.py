"""A backend over the fake upstream, with time-outs short enough for tests."""

import pytest

from penstock.core.catalogue import Provider
from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.router.backends.base import AttemptFailed, Call, Chunk
from penstock.router.backends.openai import Access, OpenAIBackend
from penstock.router.breaker import Breaker, Trip
from penstock.type.v1.chat_pb2 import ChatInput
from support.chat import catalogue, chat
from support.clock import HandClock

KEY = "sk-very-secret-0123456789"
SPEC = catalogue().providers["acme"].model_copy(update={"in_flight_max": 2})
IMPATIENT = SPEC.model_copy(update={"first_byte_timeout_seconds": 0.3, "idle_timeout_seconds": 0.3})
"""For tests of time-outs only: on a busy machine a good answer may take as long."""


HANG_UP_SECONDS = 2.0
"""A hang-up reaches the upstream far sooner; the machine may be busy."""


def make(base_url: str, clock: HandClock, spec: Provider = SPEC) -> OpenAIBackend:
    breaker = Breaker(lambda: Trip(3, 5), clock)
    access = Access(label="acme", base_url=base_url, api_key=KEY)
    return OpenAIBackend(spec=spec, access=access, breaker=breaker, clock=SystemClock())


def call(asked: ChatInput | None = None, *, seconds: float = 20, model: str = "large") -> Call:
    return Call(
        request_id="req_1",
        model=model,
        input=asked or chat(max_tokens=8),
        deadline=Deadline.after(seconds),
    )


async def collect(backend: OpenAIBackend, asked: Call) -> list[Chunk]:
    return [chunk async for chunk in backend.generate(asked)]


async def failure(backend: OpenAIBackend, asked: Call | None = None) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        await collect(backend, asked or call())
    assert KEY not in repr(caught.value.error.message)
    return caught.value


def text(chunks: list[Chunk]) -> str:
    return "".join(d.content for c in chunks for d in c.deltas)
