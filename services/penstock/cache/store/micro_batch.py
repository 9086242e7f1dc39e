"""Gathers what arrives while the last statement runs into the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

BATCH_ITEMS_MAX = 256
"""Items of one statement: more would make the first of them wait for the last."""

RUNNING_MAX = 2
"""Statements at once: the second one starts while the answer of the first is on its way."""


class MicroBatch(Generic[T, R]):
    """`apply` gets many items and returns as many results, in their order."""

    def __init__(self, apply: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> None:
        self._apply = apply
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, item: T) -> "asyncio.Future[R]":
        """The result to come. Cancelling the future takes the item back while it still waits."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._running) < RUNNING_MAX:
            self._start()
        return future

    def _start(self) -> None:
        task = asyncio.create_task(self._run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self) -> None:
        # One turn of the loop: what became ready together goes together.
        await asyncio.sleep(0)
        while self._waiting:
            taken, self._waiting = (
                self._waiting[:BATCH_ITEMS_MAX],
                self._waiting[BATCH_ITEMS_MAX:],
            )
            batch = [(item, future) for item, future in taken if not future.cancelled()]
            if not batch:
                continue
            try:
                results = await self._apply([item for item, _ in batch])
            except Exception as error:  # noqa: BLE001  each item is told; the batcher goes on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
