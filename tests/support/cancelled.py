"""Cancellation where it hurts: at each await, one after the other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from itertools import count
from typing import Any


class _CancelledAt:
    """Awaits a coroutine, and cancels the task when that stands still for the nth time."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], nth: int) -> None:
        self._coroutine = coroutine
        self._left = nth

    def __await__(self) -> Generator[Any, Any, None]:
        value, error = None, None
        while True:
            try:
                waits_for = self._coroutine.throw(error) if error else self._coroutine.send(value)
            except StopIteration:
                return
            self._left -= 1
            if not self._left:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            value, error = None, None
            try:
                value = yield waits_for
            except BaseException as raised:  # noqa: BLE001 - it is the coroutine's
                error = raised


async def cancelled_at_each_await(
    make: Callable[[], Coroutine[Any, Any, object]],
) -> AsyncIterator[int]:
    """Runs it again and again, each time cancelled one await later, until it ends before that.

    Yields after each cancellation: at which await it was.
    """
    for nth in count(1):
        run = _CancelledAt(make(), nth)

        async def task(run: _CancelledAt = run) -> None:
            await run

        try:
            await asyncio.create_task(task())
        except asyncio.CancelledError:
            yield nth
        else:
            return
