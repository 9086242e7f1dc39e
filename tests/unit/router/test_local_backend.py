"""Our own replicas, by real gRPC to replicas that refuse, break and die."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import grpc
import pytest

from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.local.v1.local_pb2 import Load
from penstock.router.backends.base import AttemptFailed, Billing, Call, Chunk, Views
from penstock.router.backends.local import LocalBackend
from penstock.router.policy import Ask, plan, resolve
from penstock.router.pools import Pools
from support.chat import catalogue, chat
from support.fake_replica import (
    BUG,
    DEAD,
    DOWN,
    FULL,
    HANG,
    FakeReplica,
    delta,
    last,
    snapshot,
)

CATALOGUE = catalogue()
CLOCK = SystemClock()
HANG_UP_SECONDS = 2.0
"""A hang-up reaches the replica far sooner; the machine may be busy."""


@pytest.fixture
async def pools() -> AsyncIterator[Pools]:
    pools = Pools(catalogue=lambda: CATALOGUE, clock=CLOCK)
    yield pools
    await pools.close()


@pytest.fixture
def backend(pools: Pools) -> LocalBackend:
    return LocalBackend(pools=pools, token="router-secret", clock=CLOCK)


@pytest.fixture
async def replicas(pools: Pools) -> AsyncIterator[tuple[FakeReplica, FakeReplica]]:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(FakeReplica("r1"))
        two = await stack.enter_async_context(FakeReplica("r2"))
        yield one, two


@pytest.fixture
async def replica(pools: Pools, replicas: tuple[FakeReplica, FakeReplica]) -> FakeReplica:
    pools.apply(snapshot(replicas[0].listed()))
    return replicas[0]


def call(*, seconds: float = 20, wait_seconds: float = 0, n: int = 1) -> Call:
    return Call(
        request_id="req_1",
        model="small",
        input=chat(max_tokens=8, n=n),
        deadline=Deadline.after(seconds),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        wait_seconds_max=wait_seconds,
    )


async def collect(backend: LocalBackend, asked: Call) -> list[Chunk]:
    return [chunk async for chunk in backend.generate(asked)]


async def failure(backend: LocalBackend, asked: Call) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        await collect(backend, asked)
    return caught.value


def text(chunks: list[Chunk]) -> str:
    return "".join(d.content for c in chunks for d in c.deltas)


async def test_chunks_carry_deltas_counts_and_the_engines_usage(
    backend: LocalBackend, replica: FakeReplica
) -> None:
    chunks = await collect(backend, call())
    assert text(chunks) == "hello"
    assert (chunks[0].prompt_tokens, chunks[0].completion_tokens_so_far) == (5, 1)
    assert chunks[0].usage is None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


async def test_a_call_shows_application_token_trace_and_deadline(
    backend: LocalBackend, replica: FakeReplica
) -> None:
    await collect(backend, call(seconds=9))
    shown = replica.metadata[0]
    assert shown["application"] == "app-small"
    assert shown["authorization"] == "Bearer router-secret"
    assert shown["traceparent"] == call().traceparent
    assert 7 < replica.seconds_left[0] < 9.5
    assert replica.requests[0].request_id == "req_1"
    assert replica.requests[0].input.max_tokens == 8


async def test_closing_the_stream_stops_the_replica_and_frees_its_place(
    backend: LocalBackend, replica: FakeReplica, pools: Pools
) -> None:
    replica.script = [delta("hello"), HANG]
    async with aclosing(backend.generate(call(n=2))) as chunks:
        await anext(chunks)
        assert pools.view("small").free_slots == 0
    await asyncio.wait_for(replica.cancelled.wait(), HANG_UP_SECONDS)
    assert pools.view("small").free_slots == 2


async def test_cancelling_the_task_stops_the_replica_before_its_first_delta(
    backend: LocalBackend, replica: FakeReplica, pools: Pools
) -> None:
    replica.script = [HANG]
    task = asyncio.create_task(collect(backend, call()))
    await replica.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(replica.cancelled.wait(), HANG_UP_SECONDS)
    assert pools.view("small").free_slots == 2


async def test_a_full_replica_sends_the_call_to_another_one(
    backend: LocalBackend, replicas: tuple[FakeReplica, FakeReplica], pools: Pools
) -> None:
    replicas[0].script = [FULL]
    pools.apply(snapshot(*(r.listed() for r in replicas)))
    for _ in range(3):
        assert text(await collect(backend, call())) == "hello"
    assert len(replicas[1].requests) == 3


async def test_a_full_pool_is_told_at_once_with_a_time_to_retry(
    backend: LocalBackend, replica: FakeReplica
) -> None:
    replica.script = [FULL]
    failed = await failure(backend, call())
    assert failed.error.reason == "CAPACITY_EXHAUSTED"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)
    assert failed.error.retry_after_seconds is not None
    assert len(replica.requests) == 1


async def test_a_full_pool_is_waited_for_where_the_plan_says_so(
    backend: LocalBackend, replica: FakeReplica, pools: Pools
) -> None:
    replica.script = [HANG]
    held = [asyncio.create_task(collect(backend, call())) for _ in range(6)]
    await replica.called(6)
    replica.script = [delta("at last"), last()]
    waiting = asyncio.create_task(collect(backend, call(wait_seconds=20)))
    held[0].cancel()
    assert text(await waiting) == "at last"
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_of_a_burst_all_see_the_same_room_and_the_last_wait_for_it(
    backend: LocalBackend, replica: FakeReplica, pools: Pools
) -> None:
    replica.script = [HANG]
    ask = Ask(chat(), 1, local_only=False, deadline=Deadline.after(20))
    route = resolve("local/small", CATALOGUE, [])
    (planned,) = plan(ask, route, CATALOGUE, Views(pools=pools.views())).attempts
    burst = [
        asyncio.create_task(collect(backend, call(wait_seconds=planned.wait_seconds_max)))
        for _ in range(8)
    ]
    await replica.called(6)
    replica.script = [delta("at last"), last()]
    for task in burst[:2]:
        task.cancel()
    assert ["at last"] * 2 == [text(await task) for task in burst[6:]]
    for task in burst[2:6]:
        task.cancel()
    await asyncio.gather(*burst, return_exceptions=True)


async def test_without_a_replica_the_error_says_so(backend: LocalBackend) -> None:
    failed = await failure(backend, call())
    assert failed.error.reason == "NO_REPLICA"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)


async def test_a_replica_that_appears_is_used_by_who_waits(
    backend: LocalBackend, replicas: tuple[FakeReplica, FakeReplica], pools: Pools
) -> None:
    waiting = asyncio.create_task(collect(backend, call(wait_seconds=20)))
    await asyncio.sleep(0)
    pools.apply(snapshot(replicas[0].listed()))
    assert text(await waiting) == "hello"


@pytest.mark.parametrize("refusal", [DOWN, BUG, (grpc.StatusCode.CANCELLED, "shutting down")])
async def test_a_replica_that_fails_first_sends_the_call_to_another_one(
    backend: LocalBackend,
    replicas: tuple[FakeReplica, FakeReplica],
    pools: Pools,
    refusal: tuple[grpc.StatusCode, str],
) -> None:
    replicas[0].script = [refusal]
    pools.apply(snapshot(*(r.listed() for r in replicas)))
    for _ in range(8):
        assert text(await collect(backend, call())) == "hello"
    # After three failures in a row it is asked no more.
    assert len(replicas[0].requests) == CATALOGUE.routing.breaker_failures


async def test_when_the_second_fails_too_the_next_target_is_asked(
    backend: LocalBackend, replicas: tuple[FakeReplica, FakeReplica], pools: Pools
) -> None:
    for one in replicas:
        one.script = [DOWN]
    pools.apply(snapshot(*(r.listed() for r in replicas)))
    failed = await failure(backend, call(wait_seconds=20))
    assert failed.error.reason == "UPSTREAM_FAILED"
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)
    assert [len(r.requests) for r in replicas] == [1, 1]


async def test_a_replica_that_calls_itself_dead_is_ejected_at_once(
    backend: LocalBackend, replica: FakeReplica, pools: Pools
) -> None:
    replica.script = [DEAD]
    failed = await failure(backend, call())
    assert failed.error.reason == "ENGINE_DEAD"
    assert pools.view("small").ready_replicas == 0


async def test_a_process_that_is_gone_is_a_failure_before_the_first_delta(
    backend: LocalBackend, replica: FakeReplica
) -> None:
    await replica.die()
    failed = await failure(backend, call())
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, True)
    assert "127.0.0.1" not in failed.error.message


@pytest.mark.parametrize("refusal", [DOWN, BUG, FULL, (grpc.StatusCode.CANCELLED, "")])
async def test_after_the_first_delta_nothing_is_tried_again(
    backend: LocalBackend,
    replicas: tuple[FakeReplica, FakeReplica],
    pools: Pools,
    refusal: tuple[grpc.StatusCode, str],
) -> None:
    for one in replicas:
        one.script = [delta("hel"), refusal]
    pools.apply(snapshot(*(r.listed() for r in replicas)))
    failed = await failure(backend, call())
    assert failed.error.reason == "STREAM_BROKEN"
    assert failed.billing is Billing.UNKNOWN
    assert sum(len(r.requests) for r in replicas) == 1


async def test_a_replica_that_dies_in_mid_stream_breaks_the_stream(
    backend: LocalBackend, replica: FakeReplica
) -> None:
    replica.script = [delta("hel"), HANG]
    async with aclosing(backend.generate(call())) as chunks:
        await anext(chunks)
        await replica.die()
        with pytest.raises(AttemptFailed) as caught:
            await anext(chunks)
    assert caught.value.error.reason == "STREAM_BROKEN"
    assert caught.value.billing is Billing.UNKNOWN


async def test_a_request_that_the_engine_refuses_is_nobodys_failure(
    backend: LocalBackend, replica: FakeReplica, pools: Pools
) -> None:
    told = "INVALID_REQUEST: input.messages[0].role: is no known role"
    replica.script = [(grpc.StatusCode.INVALID_ARGUMENT, told)]
    for _ in range(5):
        failed = await failure(backend, call())
    assert (failed.billing, failed.fall_back) == (Billing.NOTHING, False)
    assert failed.error.reason == "INVALID_REQUEST"
    assert failed.error.violations[0].field == "input.messages[0].role"
    assert pools.view("small").ready_replicas == 1


async def test_a_prompt_that_is_too_long_here_may_go_elsewhere(
    backend: LocalBackend, replica: FakeReplica
) -> None:
    told = "CONTEXT_LENGTH_EXCEEDED: input.messages: the prompt has 631 tokens"
    replica.script = [(grpc.StatusCode.INVALID_ARGUMENT, told)]
    failed = await failure(backend, call())
    assert failed.error.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert failed.fall_back


@pytest.mark.parametrize(
    ("script", "billing"),
    [([HANG], Billing.NOTHING), ([delta("hel"), HANG], Billing.UNKNOWN)],
)
async def test_a_deadline_stops_the_replica_and_does_not_eject_it(
    backend: LocalBackend,
    replica: FakeReplica,
    pools: Pools,
    script: list[object],
    billing: Billing,
) -> None:
    replica.script = script
    for _ in range(CATALOGUE.routing.breaker_failures):
        failed = await failure(backend, call(seconds=0.4))
    assert failed.error.reason == "DEADLINE_EXCEEDED"
    assert (failed.billing, failed.fall_back) == (billing, False)
    await asyncio.wait_for(replica.cancelled.wait(), HANG_UP_SECONDS)
    assert pools.view("small").ready_replicas == 1


async def test_a_deadline_that_has_passed_reaches_no_replica(
    backend: LocalBackend, replica: FakeReplica
) -> None:
    failed = await failure(backend, call(seconds=0))
    assert failed.error.reason == "DEADLINE_EXCEEDED"
    assert failed.billing is Billing.NOTHING
    assert replica.requests == []


async def test_the_load_in_the_last_message_is_taken_over(
    backend: LocalBackend, replica: FakeReplica, pools: Pools
) -> None:
    load = Load(running=8, slots=8, queue_limit=0, service_seconds=1.0)
    replica.script = [delta("hello"), last(load=load)]
    await collect(backend, call())
    # Seven of the eight belong to others; ours has ended.
    assert pools.view("small").free_slots == 1
