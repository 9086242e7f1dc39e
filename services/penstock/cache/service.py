"""The gRPC face of the cache: one stream a router."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from penstock.cache.flights import Led
from penstock.cache.lookups import Lookups
from penstock.cache.operations import Operations
from penstock.cache.session import Session, SpanMaker
from penstock.cache.v1.cache_pb2 import BatchRequest, BatchResponse
from penstock.cache.v1.cache_pb2_grpc import CacheServiceServicer


class CacheService(CacheServiceServicer):
    """Errors are PenstockErrors; the server's interceptor tells them."""

    def __init__(self, operations: Operations, lookups: Lookups, led: Led, span: SpanMaker) -> None:
        self._operations = operations
        self._lookups = lookups
        self._led = led
        self._span = span
        self._sessions: set[Session] = set()

    async def Batch(
        self, request_iterator: AsyncIterator[BatchRequest], context: Any
    ) -> AsyncIterator[BatchResponse]:
        session = Session(self._operations, self._lookups, self._led, self._span)
        self._sessions.add(session)
        # Tells the router at once that the stream is there.
        await context.send_initial_metadata(())
        reader = asyncio.create_task(session.read(request_iterator))
        try:
            while results := await session.results():
                yield BatchResponse(results=results)
        finally:
            reader.cancel()
            session.close()
            self._sessions.discard(session)

    def end_streams(self) -> None:
        """For the drain: streams end as soon as what they store is stored; routers go elsewhere."""
        for session in self._sessions:
            session.end()
