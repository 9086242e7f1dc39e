"""A cache that neither answers nor goes away."""

import asyncio

import grpc

from penstock.cache.v1.cache_pb2 import LookupRequest, StoreRequest
from penstock.core.batch_stream import BatchStream, Wire
from penstock.core.catalogue import CacheSettings
from penstock.core.deadline import Deadline
from penstock.router.answers import BREAKER_FAILURES, CacheAnswers

PATIENCE_SECONDS = 0.05


class SilentCall:
    """Takes what is written, and says nothing."""

    async def write(self, request: object) -> None: ...

    async def read(self) -> object:
        return await asyncio.Event().wait()

    async def done_writing(self) -> None: ...

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK

    async def details(self) -> str:
        return ""

    def done(self) -> bool:
        return False

    def cancel(self) -> bool:
        return True


async def test_a_silent_cache_is_not_waited_for_once_it_is_known_to_be_silent() -> None:
    answers = CacheAnswers(
        BatchStream("cache", Wire(SilentCall, list, list)),
        CacheSettings,
        lookup_seconds=PATIENCE_SECONDS,
        acknowledge_seconds=60,
    )
    deadline = Deadline.after(60)
    for _ in range(BREAKER_FAILURES):
        assert await answers.lookup(LookupRequest(), deadline) is None
    async with asyncio.timeout(5):
        assert await answers.lookup(LookupRequest(), deadline) is None
        await answers.store(StoreRequest())
    await answers.drain(0)
