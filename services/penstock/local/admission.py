"""Who may generate now, who waits, who is refused: exact, in choices, first come first served."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from penstock.core.clock import Clock
from penstock.core.errors import CapacityExhausted, FieldViolation, InvalidRequest
from penstock.local.average import Average

RETRY_SECONDS_DEFAULT = 1.0
"""Told to a refused caller before the first request has shown how long one takes."""


@dataclass(slots=True)
class _Waiter:
    choices: int
    admitted: asyncio.Future[None]


class Admission:
    """`slots` choices run at once, `queue_limit` more may wait; a request of n choices takes n."""

    def __init__(self, *, slots: int, queue_limit: int, clock: Clock) -> None:
        self._slots = slots
        self._queue_limit = queue_limit
        self._clock = clock
        self._queue: deque[_Waiter] = deque()
        self.running = 0
        self._service_seconds = Average()

    @property
    def service_seconds(self) -> float:
        """Time of a request in its slot, exponentially weighted; 0 before the first."""
        return self._service_seconds.value

    @property
    def waiting(self) -> int:
        return sum(w.choices for w in self._queue)

    @asynccontextmanager
    async def slot(self, choices: int) -> AsyncIterator[None]:
        """Holds `choices` slots; waits for them while the queue has room.

        Raises:
            InvalidRequest: more choices than there are slots at all.
            CapacityExhausted: slots and queue are full; at once.
        """
        await self._enter(choices)
        began = self._clock.monotonic_seconds()
        try:
            yield
        finally:
            self._service_seconds.add(self._clock.monotonic_seconds() - began)
            self._leave(choices)

    async def _enter(self, choices: int) -> None:
        if choices > self._slots:
            text = f"{choices} choices need {choices} slots, and the model has {self._slots}"
            raise InvalidRequest.of([FieldViolation("input.n", f"{text}: ask for fewer")])
        if self.running + self.waiting + choices > self._slots + self._queue_limit:
            raise CapacityExhausted(
                f"all {self._slots} slots and the queue of {self._queue_limit} are taken",
                retry_after_seconds=self.service_seconds or RETRY_SECONDS_DEFAULT,
            )
        if not self._queue and self.running + choices <= self._slots:
            self.running += choices
            return
        waiter = _Waiter(choices, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
                self._admit()
            else:
                # Admitted in the same turn of the loop in which it was cancelled.
                self._leave(choices)
            raise

    def _leave(self, choices: int) -> None:
        self.running -= choices
        self._admit()

    def _admit(self) -> None:
        while self._queue and self.running + self._queue[0].choices <= self._slots:
            waiter = self._queue.popleft()
            self.running += waiter.choices
            if not waiter.admitted.done():
                waiter.admitted.set_result(None)
