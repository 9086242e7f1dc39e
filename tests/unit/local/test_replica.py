"""The replica over a fake engine, without Ray: tokens, admission, errors, death."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from penstock.core.errors import Unavailable
from penstock.local.app import Replica
from penstock.local.config import ReplicaSettings
from penstock.local.engines.base import engine_dead
from penstock.local.v1 import local_pb2
from support.fake_engine import FakeEngine

SETTINGS = ReplicaSettings(
    name="m",
    engine="fake",
    path="/nowhere",
    format="none",
    context_tokens=128,
    replicas=1,
    slots=1,
    queue_limit=1,
    threads=1,
    cpus=1,
    gpus=0,
)


class Context:
    def __init__(self, token: str | None = "secret") -> None:
        self._metadata = [("authorization", f"Bearer {token}")] if token is not None else []
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailers: dict[str, Any] = {}

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, Any]]) -> None:
        self.trailers = dict(trailing_metadata)

    @property
    def status(self) -> status_pb2.Status:
        return status_pb2.Status.FromString(self.trailers["grpc-status-details-bin"])


class Stand:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.exits: asyncio.Queue[int] = asyncio.Queue()
        self.replica = Replica.over(
            SETTINGS, self.engine, token="secret", leave=self.exits.put_nowait
        )

    async def generate(self, context: Context, **fields: Any) -> list[local_pb2.GenerateResponse]:
        request = local_pb2.GenerateRequest(request_id="r")
        request.input.max_tokens = 2
        for name, value in fields.items():
            setattr(request.input, name, value)
        return [m async for m in self.replica.Generate(request, context)]

    async def until_running(self) -> None:
        """A request has reached the engine since the last time."""
        await asyncio.wait_for(self.engine.began.wait(), 5)
        self.engine.began.clear()


@pytest.fixture
def stand() -> Stand:
    return Stand()


async def test_an_answer_ends_with_usage_and_load(stand: Stand) -> None:
    context = Context()
    asked = asyncio.create_task(stand.generate(context))
    await stand.until_running()
    stand.engine.release(2)
    messages = await asked
    assert context.code is None
    assert "".join(d.content for m in messages for d in m.deltas) == "1 2 "
    assert messages[-1].usage.completion_tokens == 2
    assert messages[-1].load.slots == 1
    assert [m.HasField("load") for m in messages[:-1]] == [False] * (len(messages) - 1)


@pytest.mark.parametrize("token", [None, "", "wrong", "sécret"])
async def test_without_the_routers_token_nothing_is_done(stand: Stand, token: str | None) -> None:
    context = Context(token)
    assert await stand.generate(context) == []
    assert context.code is grpc.StatusCode.UNAUTHENTICATED
    assert "secret" not in context.details
    stats = Context(token)
    assert await stand.replica.Stats(local_pb2.StatsRequest(), stats) == local_pb2.StatsResponse()
    assert stats.code is grpc.StatusCode.UNAUTHENTICATED


async def test_over_slots_and_queue_is_refused_with_reason_and_retry(stand: Stand) -> None:
    held = [asyncio.create_task(stand.generate(Context())) for _ in range(2)]
    await stand.until_running()
    await asyncio.sleep(0)
    context = Context()
    assert await stand.generate(context) == []
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert context.details.startswith("CAPACITY_EXHAUSTED: ")
    assert context.status.message == context.details
    info = error_details_pb2.ErrorInfo()
    assert context.status.details[0].Unpack(info)
    assert info.reason == "CAPACITY_EXHAUSTED"
    retry = error_details_pb2.RetryInfo()
    assert context.status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() > 0
    stand.engine.release(2)
    await held[0]
    await stand.until_running()
    stand.engine.release(2)
    assert (await held[1])[-1].usage.completion_tokens == 2


async def test_max_tokens_must_be_set(stand: Stand) -> None:
    context = Context()
    assert await stand.generate(context, max_tokens=0) == []
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "input.max_tokens" in context.details


async def test_a_hang_up_closes_the_engine_and_frees_the_slot(stand: Stand) -> None:
    asked = asyncio.create_task(stand.generate(Context(), max_tokens=100))
    await stand.until_running()
    stand.engine.release(1)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert (stand.engine.running, stand.engine.closed_early) == (0, 1)
    stats = await stand.replica.Stats(local_pb2.StatsRequest(), Context())
    assert (stats.load.running, stats.load.waiting) == (0, 0)


async def test_a_dead_engine_is_unavailable_and_the_process_ends(stand: Stand) -> None:
    stand.engine.error = engine_dead("it crashed")
    context = Context()
    asked = asyncio.create_task(stand.generate(context))
    await stand.until_running()
    stand.engine.release(1)
    assert await asked == []
    assert context.code is grpc.StatusCode.UNAVAILABLE
    assert context.details.startswith("ENGINE_DEAD: ")
    assert not (await stand.replica.Stats(local_pb2.StatsRequest(), Context())).healthy
    assert stand.exits.empty()
    assert await asyncio.wait_for(stand.exits.get(), 5) == 1


async def test_serves_health_check_hears_of_a_dead_engine(stand: Stand) -> None:
    await stand.replica.check_health()
    stand.engine.ill = engine_dead("it hangs")
    with pytest.raises(Unavailable):
        await stand.replica.check_health()
    assert await asyncio.wait_for(stand.exits.get(), 5) == 1


async def test_an_unexpected_error_keeps_its_text_to_itself(stand: Stand) -> None:
    stand.engine.error = ZeroDivisionError("the prompt was: …")  # type: ignore[assignment]
    context = Context()
    asked = asyncio.create_task(stand.generate(context))
    await stand.until_running()
    stand.engine.release(1)
    await asked
    assert context.code is grpc.StatusCode.INTERNAL
    assert "prompt" not in context.details
