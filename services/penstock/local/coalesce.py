"""Many small deltas into few messages: the first token at once, then one message each window."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from penstock.core.assemble import joined
from penstock.local.engines.base import Delta
from penstock.local.v1 import local_pb2
from penstock.type.v1 import chat_pb2

WINDOW_SECONDS = 0.020
"""Shorter than an eye can tell; fast models then send tens of messages a second, not hundreds."""


class _Batch:
    """Deltas that go out together."""

    def __init__(self) -> None:
        self._deltas: list[chat_pb2.ChoiceDelta] = []
        self._last: Delta | None = None

    def __bool__(self) -> bool:
        return self._last is not None

    @property
    def has_tokens(self) -> bool:
        return self._last is not None and self._last.completion_tokens > 0

    def add(self, delta: Delta) -> None:
        self._last = delta
        self._deltas.extend(delta.choices)

    def message(self) -> local_pb2.GenerateResponse:
        assert self._last is not None
        return local_pb2.GenerateResponse(
            deltas=joined(self._deltas),
            usage=self._last.usage,
            completion_tokens_so_far=self._last.completion_tokens,
            prompt_tokens=self._last.prompt_tokens,
        )


async def coalesce(
    deltas: AsyncGenerator[Delta, None], *, window_seconds: float = WINDOW_SECONDS
) -> AsyncGenerator[local_pb2.GenerateResponse, None]:
    """What came before an error is sent before the error is raised. Closing it closes `deltas`."""
    loop = asyncio.get_running_loop()
    pending: asyncio.Future[Delta] | None = None
    batch = _Batch()
    send_at = loop.time()
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(deltas))
            wait_seconds = max(0.0, send_at - loop.time()) if batch else None
            await asyncio.wait({pending}, timeout=wait_seconds)
            failure = None
            if pending.done():
                failure = pending.exception()
                if failure is None:
                    delta = pending.result()
                    batch.add(delta)
                pending = None
            if batch and (failure or loop.time() >= send_at):
                # What carries no token (the prompt's count) must not hold up the first one.
                if batch.has_tokens:
                    send_at = loop.time() + window_seconds
                yield batch.message()
                batch = _Batch()
            if isinstance(failure, StopAsyncIteration):
                return
            if failure is not None:
                raise failure
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await pending
        await deltas.aclose()
