"""A server as all our services run it, over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from penstock.capacity.v1 import capacity_pb2_grpc
from penstock.capacity.v1.capacity_pb2 import WatchSnapshotsRequest, WatchSnapshotsResponse
from penstock.core.channel import bearer, connect
from penstock.core.errors import BudgetExceeded, CapacityExhausted, FieldViolation, InvalidRequest
from penstock.core.health import Health
from penstock.core.server import PortInUse, Server
from penstock.core.status import from_rpc_error

NAME = "penstock.capacity.v1.CapacityService"


class Service(capacity_pb2_grpc.CapacityServiceServicer):
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.go_on = asyncio.Event()

    async def WatchSnapshots(self, request: WatchSnapshotsRequest, context: object):
        yield WatchSnapshotsResponse()
        if self.error:
            raise self.error
        await self.go_on.wait()
        yield WatchSnapshotsResponse()


@asynccontextmanager
async def serving(
    service: Service, *, token: str | None = "secret", listen: str = "127.0.0.1:0"
) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    server = Server(
        listen=listen,
        add=lambda s: capacity_pb2_grpc.add_CapacityServiceServicer_to_server(service, s),
        services=[NAME],
        health=Health(["one", "two"]),
        token=token,
    )
    await server.start()
    async with connect(server.address) as channel:
        yield server, channel
    await server.stop(0)


def watch(channel: grpc.aio.Channel, token: str = "secret"):
    stub = capacity_pb2_grpc.CapacityServiceStub(channel)
    return stub.WatchSnapshots(WatchSnapshotsRequest(), metadata=(bearer(token),), timeout=10)


async def failure(channel: grpc.aio.Channel, token: str = "secret") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in watch(channel, token):
            pass
    return caught.value


@pytest.mark.parametrize("token", ["", "wrong", "secre", "sécret".encode().decode("latin-1")])
async def test_a_call_without_the_token_is_refused(token):
    async with serving(Service()) as (_, channel):
        error = from_rpc_error(await failure(channel, token.encode("ascii", "ignore").decode()))
    assert "SERVICE_TOKEN_INVALID" == error.reason


@pytest.mark.parametrize(
    "error",
    [
        BudgetExceeded("spent", metadata={"budget_id": "b"}, retry_after_seconds=2.5),
        CapacityExhausted("full", retry_after_seconds=0.25),
        InvalidRequest.of([FieldViolation("n", "too many")]),
    ],
)
async def test_an_error_arrives_as_it_was_raised(error):
    service = Service()
    service.error = error
    async with serving(service) as (_, channel):
        told = from_rpc_error(await failure(channel))
    assert type(error) is type(told)
    assert (error.message, error.reason, error.metadata, error.violations) == (
        told.message,
        told.reason,
        told.metadata,
        told.violations,
    )
    assert error.retry_after_seconds == told.retry_after_seconds


async def test_a_message_that_is_no_protobuf_is_the_callers_fault():
    async with serving(Service()) as (_, channel):
        call = channel.unary_stream(f"/{NAME}/WatchSnapshots")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call(b"\xff\xff", metadata=(bearer("secret"),), timeout=10):
                pass
    told = from_rpc_error(caught.value)
    assert (InvalidRequest, "MESSAGE_MALFORMED") == (type(told), told.reason)


async def test_an_unexpected_error_keeps_its_text_to_itself():
    service = Service()
    service.error = RuntimeError("password=hunter2")
    async with serving(service) as (_, channel):
        told = await failure(channel)
    assert grpc.StatusCode.INTERNAL == told.code()
    assert "hunter2" not in str(told)


async def test_health_is_open_and_starts_unhealthy():
    async with serving(Service()) as (server, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        ask = health_pb2.HealthCheckRequest()
        before = (await stub.Check(ask)).status
        await server.health.set("one", ok=True)
        half = (await stub.Check(ask)).status
        assert ["two"] == server.health.waiting_for
        await server.health.set("two", ok=True)
        after = (await stub.Check(ask)).status
    response = health_pb2.HealthCheckResponse
    assert [response.NOT_SERVING, response.NOT_SERVING, response.SERVING] == [before, half, after]


async def test_reflection_names_the_services():
    async with serving(Service()) as (server, _):

        def names() -> list[str]:
            with grpc.insecure_channel(server.address) as channel:
                return list(ProtoReflectionDescriptorDatabase(channel).get_services())

        assert NAME in await asyncio.to_thread(names)


async def test_a_port_in_use_is_told():
    async with serving(Service()) as (server, _):
        with pytest.raises(PortInUse, match=str(server.port)):
            async with serving(Service(), listen=server.address):
                pass


async def test_a_stream_under_way_may_end_while_the_server_drains():
    service = Service()
    async with serving(service) as (server, channel):
        call = watch(channel)
        await call.read()
        stopping = asyncio.create_task(server.stop(10))
        await asyncio.sleep(0)
        service.go_on.set()
        assert WatchSnapshotsResponse() == await call.read()
        await stopping
