"""A real replica: Ray Serve, vLLM, the model quantized; dialled as the router dials it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator

import grpc
import psutil
import pytest

from integration.local.test_replica import Dialled, ready, replica_pid
from penstock.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from penstock.core.channel import bearer, connect
from support.local_stack import CATALOGUE, LocalStack, local_stack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

VLLM_CATALOGUE = CATALOGUE.replace("engine: llamacpp", "engine: vllm\n    format: w8a8")
STARTS_SECONDS = 240
"""vLLM starts in half a minute on two idle cores, and converting takes another half."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("vllm")
    with local_stack(folder, catalogue=VLLM_CATALOGUE, start_seconds=STARTS_SECONDS) as running:
        yield running


async def the_ready_replica(stack: LocalStack, *, but: str = "") -> capacity_pb2.Replica:
    """The one that capacity streams, once it is ready and not the one with the id `but`."""
    async with connect(stack.capacity_address) as channel, asyncio.timeout(STARTS_SECONDS):
        stub = capacity_pb2_grpc.CapacityServiceStub(channel)
        stream = stub.WatchSnapshots(
            capacity_pb2.WatchSnapshotsRequest(),
            metadata=(bearer(stack.service_token),),
            wait_for_ready=True,
        )
        async for reply in stream:
            (pool,) = reply.snapshot.pools
            if ready(1)(pool) and pool.replicas[0].id != but:
                stream.cancel()
                return pool.replicas[0]
    raise AssertionError("the stream ended")


@pytest.fixture
async def replica(stack: LocalStack) -> AsyncIterator[Dialled]:
    found = await the_ready_replica(stack)
    async with connect(found.address) as channel:
        yield Dialled(channel, stack.router_token)


async def test_an_answer_streams_and_ends_with_usage_and_load(replica: Dialled) -> None:
    messages = [m async for m in replica.generate(max_tokens=24)]
    assert messages[-1].usage.completion_tokens == 24
    assert messages[-1].load.slots == 2
    assert sum(bool(m.deltas) for m in messages) > 2
    assert "".join(d.content for m in messages for d in m.deltas).strip()
    stats = await replica.stats()
    assert (stats.engine, stats.format, stats.healthy) == ("vllm", "w8a8", True)


async def test_a_client_that_hangs_up_frees_the_model(replica: Dialled) -> None:
    call = replica.generate(max_tokens=1000)
    while (await call.read()).completion_tokens_so_far < 3:
        pass
    call.cancel()
    async with asyncio.timeout(1):
        await replica.free()


async def test_a_dead_engine_ends_its_streams_and_comes_back(stack: LocalStack) -> None:
    before = await the_ready_replica(stack)
    async with connect(before.address) as channel:
        call = Dialled(channel, stack.router_token).generate(max_tokens=1000)
        await call.read()
        os.kill(engine_core_pid(stack), signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_to_the_end(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    after = await the_ready_replica(stack, but=before.id)
    async with connect(after.address) as channel:
        call = Dialled(channel, stack.router_token).generate(max_tokens=4)
        assert [m async for m in call][-1].usage.completion_tokens == 4


async def read_to_the_end(call: grpc.aio.UnaryStreamCall) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def engine_core_pid(stack: LocalStack) -> int:
    """The replica's one child beside multiprocessing's resource tracker.

    Not told by its title `VLLM::EngineCore`: where vLLM's first change of the environment happens
    to be its first variable (Ray gives them in any order), setproctitle cannot set one.
    """
    children = psutil.Process(replica_pid(stack)).children()
    (found,) = (p.pid for p in children if "resource_tracker" not in " ".join(p.cmdline()))
    return found
