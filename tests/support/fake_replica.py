"""A replica that fails on purpose: a real gRPC server on a free port, speaking `LocalService`.

async with FakeReplica() as replica:
    replica.script = [delta("hello"), FULL]
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Self

import grpc

from penstock.capacity.v1 import capacity_pb2
from penstock.local.v1 import local_pb2
from penstock.local.v1.local_pb2_grpc import (
    LocalServiceServicer,
    add_LocalServiceServicer_to_server,
)
from penstock.type.v1.chat_pb2 import FINISH_REASON_STOP, ChoiceDelta, Usage

HANG = object()
"""In a script: from here nothing more comes."""

Refusal = tuple[grpc.StatusCode, str]

FULL: Refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "CAPACITY_EXHAUSTED: all slots are taken")
DEAD: Refusal = (grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD: the engine is dead: it is gone")
DOWN: Refusal = (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE: not now")
BUG: Refusal = (grpc.StatusCode.INTERNAL, "INTERNAL: unexpected KeyError")


def delta(content: str, *, index: int = 0, prompt_tokens: int = 5) -> local_pb2.GenerateResponse:
    return local_pb2.GenerateResponse(
        deltas=[ChoiceDelta(index=index, content=content)],
        prompt_tokens=prompt_tokens,
        completion_tokens_so_far=1,
    )


def last(
    *, prompt_tokens: int = 5, completion_tokens: int = 2, load: local_pb2.Load | None = None
) -> local_pb2.GenerateResponse:
    message = local_pb2.GenerateResponse(
        deltas=[ChoiceDelta(finish_reason=FINISH_REASON_STOP)],
        usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens),
    )
    if load is not None:
        message.load.CopyFrom(load)
    return message


class FakeReplica(LocalServiceServicer):
    """Plays `script` to every call, and remembers the calls and whether one was cancelled."""

    def __init__(self, name: str = "r1") -> None:
        self.name = name
        self.script: Sequence[Any] = [delta("hello"), last()]
        self.requests: list[local_pb2.GenerateRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.seconds_left: list[float] = []
        self.cancelled = asyncio.Event()
        self.began = asyncio.Event()
        self.address = ""
        self._counted = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_LocalServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def die(self) -> None:
        """Goes away at once: calls in flight break."""
        await self._server.stop(None)

    async def called(self, times: int) -> None:
        """Returns when so many calls have come."""
        async with self._counted:
            await self._counted.wait_for(lambda: len(self.requests) >= times)

    async def Generate(
        self, request: local_pb2.GenerateRequest, context: Any
    ) -> AsyncGenerator[local_pb2.GenerateResponse, None]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.seconds_left.append(context.time_remaining())
        self.began.set()
        async with self._counted:
            self._counted.notify_all()
        try:
            for step in self.script:
                if step is HANG:
                    await asyncio.Event().wait()
                elif isinstance(step, local_pb2.GenerateResponse):
                    yield step
                else:
                    await context.abort(*step)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def listed(
        self,
        state: capacity_pb2.Replica.State = capacity_pb2.Replica.STATE_READY,
        load: local_pb2.Load | None = None,
    ) -> capacity_pb2.Replica:
        """As capacity lists it."""
        return capacity_pb2.Replica(id=self.name, address=self.address, state=state, load=load)


def snapshot(
    *replicas: capacity_pb2.Replica, model: str = "small", ray_reachable: bool = True
) -> capacity_pb2.Snapshot:
    pool = capacity_pb2.Pool(
        model=model, application=f"app-{model}", target_replicas=len(replicas), replicas=replicas
    )
    return capacity_pb2.Snapshot(sequence=1, pools=[pool], ray_reachable=ray_reachable)
