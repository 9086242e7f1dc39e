"""What the flow relies on, whichever backend generates: one suite over both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

import grpc
import pytest

from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.router.backends.base import AttemptFailed, Backend, Billing, Call, Chunk
from penstock.router.backends.local import LocalBackend
from penstock.router.backends.providers import Providers
from penstock.router.pools import Pools
from penstock.type.v1.chat_pb2 import FINISH_REASON_STOP, ChoiceDelta, Usage
from support import fake_replica, fake_upstream
from support.chat import catalogue, chat
from support.fake_replica import FakeReplica
from support.fake_upstream import FakeUpstream

CATALOGUE = catalogue()
CLOCK = SystemClock()
GONE_SECONDS = 2.0
"""A hang-up reaches the upstream within this, on a machine that does much else."""


class Scene(Protocol):
    """A backend and what it talks to."""

    backend: Backend
    model: str
    hung_up: asyncio.Event

    def answers(self) -> None:
        """The texts "a" and "b", then seven and three tokens."""

    def hangs(self, *, after: int) -> None: ...

    def breaks(self, *, after: int) -> None: ...

    def refuses_the_request(self) -> None: ...

    def is_full(self) -> None: ...

    async def dies(self) -> None: ...


class Local:
    model = "small"

    def __init__(self, replica: FakeReplica, backend: LocalBackend) -> None:
        self.backend = backend
        self.hung_up = replica.cancelled
        self._replica = replica

    def _plays(self, after: int, *end: Any) -> None:
        self._replica.script = [*[fake_replica.delta(t) for t in "ab"[:after]], *end]

    def answers(self) -> None:
        self._plays(2, fake_replica.last(prompt_tokens=7, completion_tokens=3))

    def hangs(self, *, after: int) -> None:
        self._plays(after, fake_replica.HANG)

    def breaks(self, *, after: int) -> None:
        self._plays(after, fake_replica.BUG)

    def refuses_the_request(self) -> None:
        self._plays(0, (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST: it is odd"))

    def is_full(self) -> None:
        self._plays(0, fake_replica.FULL)

    async def dies(self) -> None:
        await self._replica.die()


class Paid:
    model = "large"

    def __init__(self, upstream: FakeUpstream, backend: Backend) -> None:
        self.backend = backend
        self.hung_up = upstream.hung_up
        self._upstream = upstream

    def _plays(self, after: int, *end: Any) -> None:
        head = [fake_upstream.piece(t) for t in "ab"[:after]]
        self._upstream.answer = fake_upstream.sse(*head, *end)

    def answers(self) -> None:
        self._plays(2, fake_upstream.piece(finish="stop"), fake_upstream.usage(7, 3))

    def hangs(self, *, after: int) -> None:
        self._plays(after, fake_upstream.HANG)

    def breaks(self, *, after: int) -> None:
        self._plays(after, fake_upstream.BREAK)

    def refuses_the_request(self) -> None:
        self._upstream.answer = fake_upstream.failing(400)

    def is_full(self) -> None:
        self._upstream.answer = fake_upstream.failing(429)

    async def dies(self) -> None:
        await self._upstream.__aexit__()


@pytest.fixture(params=["local", "paid"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    if request.param == "local":
        async with FakeReplica() as replica:
            pools = Pools(catalogue=lambda: CATALOGUE, clock=CLOCK)
            pools.apply(fake_replica.snapshot(replica.listed()))
            yield Local(replica, LocalBackend(pools=pools, token="t", clock=CLOCK))
            await pools.close()
    else:
        async with FakeUpstream() as upstream:
            environ = {"ACME_API_KEY": "k", "ACME_BASE_URL": upstream.base_url}
            providers = Providers(CATALOGUE, environ=environ, clock=CLOCK)
            yield Paid(upstream, providers.backend("acme"))
            await providers.close()


def call(scene: Scene, *, seconds: float = 20) -> Call:
    return Call("req_1", scene.model, chat(max_tokens=8), Deadline.after(seconds))


async def collect(scene: Scene, asked: Call) -> list[Chunk]:
    return [chunk async for chunk in scene.backend.generate(asked)]


async def failure(scene: Scene, *, seconds: float = 20) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        await collect(scene, call(scene, seconds=seconds))
    return caught.value


async def test_deltas_come_in_order_and_the_count_comes_once_and_last(scene: Scene) -> None:
    scene.answers()
    chunks = await collect(scene, call(scene))
    deltas = [d for c in chunks for d in c.deltas]
    assert [d.content for d in deltas if d.content] == ["a", "b"]
    assert deltas[-1] == ChoiceDelta(finish_reason=FINISH_REASON_STOP)
    assert [c.usage for c in chunks if c.usage] == [Usage(prompt_tokens=7, completion_tokens=3)]
    assert chunks[-1].usage is not None


@pytest.mark.parametrize("after", [1, 2])
async def test_the_first_delta_comes_before_the_answer_is_complete(
    scene: Scene, after: int
) -> None:
    scene.hangs(after=after)
    async with aclosing(scene.backend.generate(call(scene))) as chunks:
        for text in "ab"[:after]:
            chunk = await asyncio.wait_for(anext(chunks), 5)
            assert [d.content for d in chunk.deltas] == [text]


async def test_closing_the_generator_hangs_up(scene: Scene) -> None:
    scene.hangs(after=1)
    async with aclosing(scene.backend.generate(call(scene))) as chunks:
        await anext(chunks)
    await asyncio.wait_for(scene.hung_up.wait(), GONE_SECONDS)


async def test_cancelling_the_task_hangs_up(scene: Scene) -> None:
    scene.hangs(after=1)
    came = asyncio.Event()

    async def consume() -> None:
        async for _ in scene.backend.generate(call(scene)):
            came.set()

    task = asyncio.create_task(consume())
    await came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(scene.hung_up.wait(), GONE_SECONDS)


async def test_the_deadline_hangs_up(scene: Scene) -> None:
    scene.hangs(after=1)
    failed = await failure(scene, seconds=1)
    assert failed.error.reason == "DEADLINE_EXCEEDED"
    assert (failed.billing, failed.fall_back) == (Billing.UNKNOWN, False)
    await asyncio.wait_for(scene.hung_up.wait(), GONE_SECONDS)


async def test_a_passed_deadline_bills_nothing(scene: Scene) -> None:
    scene.answers()
    failed = await failure(scene, seconds=0)
    assert failed.error.reason == "DEADLINE_EXCEEDED"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, False)


async def test_a_failure_before_the_first_delta_lets_another_target_try(scene: Scene) -> None:
    scene.breaks(after=0)
    failed = await failure(scene)
    assert failed.error.code is grpc.StatusCode.UNAVAILABLE
    assert failed.fall_back


async def test_a_failure_after_the_first_delta_may_have_been_billed(scene: Scene) -> None:
    scene.breaks(after=1)
    failed = await failure(scene)
    assert failed.error.reason == "STREAM_BROKEN"
    assert failed.billing is Billing.UNKNOWN


async def test_a_faulty_request_is_not_tried_elsewhere(scene: Scene) -> None:
    scene.refuses_the_request()
    failed = await failure(scene)
    assert failed.error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, False)


async def test_full_is_told_as_such_and_bills_nothing(scene: Scene) -> None:
    scene.is_full()
    failed = await failure(scene)
    assert failed.error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)


async def test_what_is_not_reached_bills_nothing_and_is_ejected(scene: Scene) -> None:
    await scene.dies()
    for _ in range(CATALOGUE.routing.breaker_failures):
        failed = await failure(scene)
        assert failed.error.code is grpc.StatusCode.UNAVAILABLE
        assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)
    ejected = await failure(scene)
    assert ejected.billing is Billing.NOTHING
    assert ejected.error.retry_after_seconds is not None
