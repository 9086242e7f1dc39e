"""The router's side of a real replica: capacity's snapshots followed, Ray's replicas dialled."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress

import psutil
import pytest

from contract.engine.asking import LONG_STORY, ask
from penstock.core.clock import SystemClock
from penstock.core.config import load
from penstock.core.deadline import Deadline
from penstock.local.v1.local_pb2 import StatsRequest
from penstock.router.backends.base import AttemptFailed, Billing, Call, Chunk, PoolView
from penstock.router.backends.local import LocalBackend
from penstock.router.pools import Pools
from penstock.router.snapshot_feed import SnapshotFeed
from support.local_stack import MODEL, LocalStack

COMES_BACK_SECONDS = 60


class RouterSide:
    """What one router process has of the local side."""

    def __init__(self, stack: LocalStack) -> None:
        clock = SystemClock()
        catalogue = load(stack.folder / "penstock.yaml")
        self.pools = Pools(catalogue=lambda: catalogue, clock=clock)
        self.backend = LocalBackend(pools=self.pools, token=stack.router_token, clock=clock)
        self._changed = asyncio.Condition()
        self._feed = SnapshotFeed(
            address=stack.capacity_address, token=stack.service_token, apply=self._apply
        )
        self._notices: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._feed.run())

    def _apply(self, snapshot: object) -> None:
        self.pools.apply(snapshot)  # type: ignore[arg-type]
        notice = asyncio.create_task(self._notify())
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[PoolView], bool]) -> PoolView:
        """The first view, as snapshots come, that the condition holds for."""
        async with asyncio.timeout(COMES_BACK_SECONDS), self._changed:
            await self._changed.wait_for(lambda: condition(self.pools.view(MODEL)))
            return self.pools.view(MODEL)

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self.pools.close()


@pytest.fixture
async def router(stack: LocalStack) -> AsyncIterator[RouterSide]:
    side = RouterSide(stack)
    await side.until(lambda view: view.free_slots == 2)
    yield side
    await side.close()


@pytest.fixture
async def other_router(stack: LocalStack) -> AsyncIterator[RouterSide]:
    side = RouterSide(stack)
    await side.until(lambda view: view.free_slots == 2)
    yield side
    await side.close()


def call(text: str = LONG_STORY, *, wait_seconds: float = 0, **fields: object) -> Call:
    return Call(
        "req_1", MODEL, ask(text, **fields), Deadline.after(60), wait_seconds_max=wait_seconds
    )


async def collect(router: RouterSide, asked: Call) -> list[Chunk]:
    return [chunk async for chunk in router.backend.generate(asked)]


async def test_an_answer_streams_with_the_engines_count(router: RouterSide) -> None:
    chunks = await collect(router, call(max_tokens=12, n=2))
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 24
    assert {d.index for c in chunks for d in c.deltas} == {0, 1}


async def test_a_client_that_hangs_up_stops_the_model_within_100_ms(router: RouterSide) -> None:
    freed_ms = []
    for _ in range(3):
        async with aclosing(router.backend.generate(call(max_tokens=1000))) as chunks:
            async for chunk in chunks:
                if chunk.completion_tokens_so_far > 3:
                    break
            began = time.perf_counter()
        lease = router.pools.take(MODEL, 1)
        assert lease is not None
        shown = (("application", lease.replica.application), router.backend._authorization)
        async with asyncio.timeout(30):
            while True:
                stats = await lease.replica.stub.Stats(StatsRequest(), metadata=shown)
                if not stats.load.running:
                    break
        freed_ms.append((time.perf_counter() - began) * 1000)
        lease.release()
    assert min(freed_ms) < 100


async def test_more_than_slots_and_queue_is_told_at_once_or_waited_for(
    router: RouterSide,
) -> None:
    held = [asyncio.create_task(collect(router, call(max_tokens=1000))) for _ in range(4)]
    while router.pools.view(MODEL).queue_room:  # noqa: ASYNC110  a few turns of the loop
        await asyncio.sleep(0)
    began = time.perf_counter()
    with pytest.raises(AttemptFailed) as caught:
        await collect(router, call(max_tokens=4))
    assert time.perf_counter() - began < 0.5
    assert caught.value.error.reason == "CAPACITY_EXHAUSTED"
    assert caught.value.billing is Billing.NOTHING
    waiting = asyncio.create_task(collect(router, call(max_tokens=4, wait_seconds=50)))
    for task in held:
        task.cancel()
    usage = (await waiting)[-1].usage
    assert usage is not None
    assert usage.completion_tokens == 4
    await asyncio.gather(*held, return_exceptions=True)


async def test_what_one_router_has_there_is_seen_by_another(
    router: RouterSide, other_router: RouterSide
) -> None:
    held = asyncio.create_task(collect(router, call(max_tokens=1000, n=2)))
    view = await other_router.until(lambda view: view.free_slots == 0)
    assert view.ready_replicas == 1
    assert view.expected_wait_ms > 0
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    await other_router.until(lambda view: view.free_slots == 2)


async def test_a_router_that_does_not_know_is_refused_by_the_replica_itself(
    router: RouterSide, other_router: RouterSide
) -> None:
    held = [asyncio.create_task(collect(router, call(max_tokens=1000))) for _ in range(4)]
    await other_router.until(lambda view: view.free_slots == 0 and view.queue_room == 0)
    with pytest.raises(AttemptFailed) as caught:
        await collect(other_router, call(max_tokens=4))
    assert caught.value.error.reason == "CAPACITY_EXHAUSTED"
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    await other_router.until(lambda view: view.free_slots == 2)


async def test_an_over_long_prompt_may_go_elsewhere(router: RouterSide) -> None:
    with pytest.raises(AttemptFailed) as caught:
        await collect(router, call("word " * 3000))
    failed = caught.value
    assert failed.error.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert failed.error.metadata["context_tokens"] == "2048"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)


async def test_a_wrong_router_token_is_a_failure_of_ours_not_of_the_client(
    router: RouterSide,
) -> None:
    intruder = LocalBackend(pools=router.pools, token="wrong", clock=SystemClock())
    with pytest.raises(AttemptFailed) as caught:
        [c async for c in intruder.generate(call(max_tokens=4))]
    assert caught.value.error.reason == "UPSTREAM_FAILED"
    assert caught.value.fall_back


async def test_a_killed_replica_breaks_its_stream_and_the_next_one_is_found(
    stack: LocalStack, router: RouterSide
) -> None:
    async with aclosing(router.backend.generate(call(max_tokens=1000))) as chunks:
        async for chunk in chunks:
            if chunk.deltas:
                break
        for child in psutil.Process(stack.local.pid).children(recursive=True):
            if "ServeReplica" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(AttemptFailed) as caught:
            async for _ in chunks:
                pass
    assert caught.value.error.reason == "STREAM_BROKEN"
    assert caught.value.billing is Billing.UNKNOWN
    # Whoever waits is served by the replica that Serve starts in its place.
    chunks_again = await asyncio.wait_for(served(router), COMES_BACK_SECONDS)
    assert chunks_again[-1].usage is not None


async def served(router: RouterSide) -> list[Chunk]:
    """Until capacity has seen the death, a call may still be sent to the dead one."""
    while True:
        with suppress(AttemptFailed):
            return await collect(router, call(max_tokens=4, wait_seconds=30))
