"""A real replica: Ray Serve, llama.cpp, a 4-bit model; dialled as the router dials it."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable

import grpc
import httpx
import psutil
import pytest

from contract.engine.asking import LONG_STORY, ask
from penstock.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from penstock.core.channel import bearer, connect
from penstock.core.errors import CapacityExhausted, InvalidRequest, Unauthenticated
from penstock.core.status import from_rpc_error
from penstock.local.v1 import local_pb2, local_pb2_grpc
from support.local_stack import APPLICATION, MODEL, LocalStack
from support.wait import until

READY = capacity_pb2.Replica.STATE_READY
COMES_BACK_SECONDS = 60


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("application", APPLICATION), bearer(token))


async def pool_when(
    stack: LocalStack, condition: Callable[[capacity_pb2.Pool], bool]
) -> capacity_pb2.Pool:
    """The first pool that capacity streams and that the condition holds for."""
    async with connect(stack.capacity_address) as channel, asyncio.timeout(COMES_BACK_SECONDS):
        stub = capacity_pb2_grpc.CapacityServiceStub(channel)
        stream = stub.WatchSnapshots(
            capacity_pb2.WatchSnapshotsRequest(),
            metadata=(bearer(stack.service_token),),
            wait_for_ready=True,
        )
        async for reply in stream:
            (pool,) = reply.snapshot.pools
            if condition(pool):
                stream.cancel()
                return pool
    raise AssertionError("the stream ended")


def ready(count: int) -> Callable[[capacity_pb2.Pool], bool]:
    return lambda pool: [r.state for r in pool.replicas] == [READY] * count


class Dialled:
    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._stub = local_pb2_grpc.LocalServiceStub(channel)
        self._metadata = metadata(token)

    def generate(
        self, text: str = LONG_STORY, **fields: object
    ) -> grpc.aio.UnaryStreamCall[local_pb2.GenerateRequest, local_pb2.GenerateResponse]:
        request = local_pb2.GenerateRequest(request_id="r", input=ask(text, **fields))
        return self._stub.Generate(request, metadata=self._metadata, timeout=60)

    async def stats(self) -> local_pb2.StatsResponse:
        return await self._stub.Stats(local_pb2.StatsRequest(), metadata=self._metadata, timeout=10)

    async def free(self) -> None:
        async with asyncio.timeout(30):
            # A replica has no event for it: its Stats are asked, each an RPC of some milliseconds.
            while (await self.stats()).load.running:
                pass


@pytest.fixture
async def replica(stack: LocalStack) -> AsyncIterator[Dialled]:
    pool = await pool_when(stack, ready(1))
    async with connect(pool.replicas[0].address) as channel:
        yield Dialled(channel, stack.router_token)


async def test_capacity_tells_the_model_its_replica_and_its_load(stack: LocalStack) -> None:
    pool = await pool_when(stack, ready(1))
    assert (pool.model, pool.application, pool.target_replicas) == (MODEL, APPLICATION, 1)
    load = pool.replicas[0].load
    assert (load.running, load.slots, load.queue_limit) == (0, 2, 2)


async def test_an_answer_streams_and_ends_with_usage_and_load(replica: Dialled) -> None:
    messages = [m async for m in replica.generate(max_tokens=24)]
    assert messages[-1].usage.completion_tokens == 24
    assert messages[-1].load.slots == 2
    assert sum(bool(m.deltas) for m in messages) > 2
    assert "".join(d.content for m in messages for d in m.deltas).strip()


async def test_calls_without_the_token_are_refused(stack: LocalStack) -> None:
    pool = await pool_when(stack, ready(1))
    async with connect(pool.replicas[0].address) as channel:
        for token in ("", "wrong"):
            intruder = Dialled(channel, token)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await intruder.stats()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await intruder.generate().read()
            error = from_rpc_error(caught.value)
            assert isinstance(error, Unauthenticated)
            assert error.reason == "ROUTER_TOKEN_INVALID"


async def test_rays_api_takes_no_call_without_its_token(stack: LocalStack) -> None:
    url = f"{stack.environment['PENSTOCK_RAY_API']}/api/serve/applications/"
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(url)).status_code == 401
        assert (await client.put(url, json={"applications": []})).status_code == 401
        given = {"Authorization": f"Bearer {stack.environment['RAY_AUTH_TOKEN']}"}
        assert (await client.get(url, headers=given)).status_code == 200


async def test_admission_is_exact_and_refuses_at_once(replica: Dialled) -> None:
    # Each holds its slot until it is let go: two run, two wait.
    held = [replica.generate(max_tokens=1000) for _ in range(4)]
    readers = [asyncio.create_task(call.read()) for call in held]

    async def full() -> bool:
        load = (await replica.stats()).load
        return (load.running, load.waiting) == (2, 2)

    await until(full, 30)
    refused_ms = []
    for _ in range(3):
        began = time.perf_counter()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replica.generate().read()
        refused_ms.append((time.perf_counter() - began) * 1000)
        error = from_rpc_error(caught.value)
        assert isinstance(error, CapacityExhausted)
        assert error.reason == "CAPACITY_EXHAUSTED"
        assert error.retry_after_seconds > 0
    assert min(refused_ms) < 100
    for call in held:
        call.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await replica.free()
    assert (await replica.stats()).load.waiting == 0


async def test_choices_take_a_slot_each(replica: Dialled) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.generate(n=3).read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "input.n"
    messages = [m async for m in replica.generate(n=2, max_tokens=4)]
    assert messages[-1].usage.completion_tokens == 8


async def test_an_over_long_prompt_keeps_its_facts_on_the_wire(replica: Dialled) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.generate("word " * 3000).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("CONTEXT_LENGTH_EXCEEDED: ")
    error = from_rpc_error(caught.value)
    assert error.metadata["context_tokens"] == "2048"
    assert error.violations[0].field == "input.messages"


async def test_a_client_that_hangs_up_frees_the_model(replica: Dialled) -> None:
    freed_ms = []
    for _ in range(3):
        call = replica.generate(max_tokens=1000)
        while (await call.read()).completion_tokens_so_far < 3:
            pass
        began = time.perf_counter()
        call.cancel()
        await replica.free()
        freed_ms.append((time.perf_counter() - began) * 1000)
    assert min(freed_ms) < 100


async def test_a_killed_replica_is_seen_and_comes_back(stack: LocalStack) -> None:
    before = (await pool_when(stack, ready(1))).replicas[0]
    os.kill(replica_pid(stack), signal.SIGKILL)
    await pool_when(
        stack, lambda pool: before.id not in [r.id for r in pool.replicas if r.state == READY]
    )
    after = (await pool_when(stack, ready(1))).replicas[0]
    assert after.id != before.id
    async with connect(after.address) as channel:
        call = Dialled(channel, stack.router_token).generate(max_tokens=4)
        assert [m async for m in call][-1].usage.completion_tokens == 4


async def test_capacity_holds_the_count_that_is_configured(stack: LocalStack) -> None:
    stack.configure(replicas=2)
    pool = await pool_when(stack, ready(2))
    assert pool.target_replicas == 2
    assert len({r.address for r in pool.replicas}) == 2
    stack.configure(replicas=1)
    assert (await pool_when(stack, ready(1))).target_replicas == 1


def replica_pid(stack: LocalStack) -> int:
    found = [
        child.pid
        for child in psutil.Process(stack.local.pid).children(recursive=True)
        if "ServeReplica" in " ".join(child.cmdline())
    ]
    assert len(found) == 1
    return found[0]
