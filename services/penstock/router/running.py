"""Requests under way: each flow runs in a task of its own, so that its caller may go away anytime.

A front waits for `Running.batch()`. When its client hangs up it calls `close()`, which returns at
once: the flow is cancelled (its upstream stops), and goes on alone until its money is settled. A
drain waits for those too.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import MappingProxyType

from penstock.core.assemble import PIECE_CHARACTERS
from penstock.core.deadline import Deadline, late
from penstock.core.errors import (
    Cancelled,
    CapacityExhausted,
    PenstockError,
    Unavailable,
)
from penstock.router.events import Delta, Done, Event

logger = logging.getLogger(__name__)

COALESCE_SECONDS = 0.02
"""How long deltas gather for one message to a client: below what a reader notices."""

WAITING_MAX = 1_024
"""Events that wait for a slow reader; then the upstream waits too."""

RUNNING_MAX = 8_192
"""Requests of one process; each costs memory, and one event loop serves no more."""

DEADLINE_GRACE_SECONDS = 0.25
"""Backends keep the deadline themselves and tell what it cost; this is for what they miss."""

SETTLE_SECONDS = 5.0
"""After a drain's grace: for what was cut off to be settled."""


class Running:
    """One flow under way. `facts`: what the flow says of its end, for errors that are told here."""

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        deadline: Deadline,
        facts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._events = events
        self._deadline = deadline
        self._facts = facts
        self._waiting: list[Event] = []
        self._waiting_characters = 0
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        """Nothing more need gather: a message is full, or the last event is there."""
        self._room = asyncio.Event()
        self._over = asyncio.Event()
        self._error: Exception | None = None
        self._spoke = False
        self._closed = False
        self._done = False
        self._why: PenstockError | None = None
        self._sent_at = float("-inf")
        self.task = asyncio.create_task(self._pump())
        self.task.add_done_callback(self._end)

    def close(self, why: PenstockError | None = None) -> None:
        """The client went away, or `why`. May be called at any time, more than once.

        A flow whose receipt is there is left alone: it only tidies up after itself.
        """
        if self._closed or self._done or self._over.is_set():
            return
        self._closed = True
        self._why = why or _cancelled()
        self.task.cancel(why)

    async def batch(self) -> list[Event]:
        """What came since the last call, as much as goes into one message; empty at the end. The
        first token comes at once.

        Raises:
            PenstockError: the flow's, after everything that came before it was handed out.
        """
        await self._arrived.wait()
        if self._spoke and not self._full.is_set():
            await self._pause()
        batch = self._take()
        self._room.set()
        if not (self._waiting or self._over.is_set()):
            self._arrived.clear()
        if batch:
            self._spoke = self._spoke or any(isinstance(event, Delta) for event in batch)
            self._sent_at = asyncio.get_running_loop().time()
            return batch
        if self._error is not None:
            raise self._error
        return batch

    def _take(self) -> list[Event]:
        """The first events that wait, up to the one that fills a message."""
        count, characters = 0, 0
        while count < len(self._waiting) and characters < PIECE_CHARACTERS:
            characters += _characters(self._waiting[count])
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._waiting_characters -= characters
        if not self._is_full():
            self._full.clear()
        return batch

    def _is_full(self) -> bool:
        return self._done or self._over.is_set() or self._waiting_characters >= PIECE_CHARACTERS

    async def _pause(self) -> None:
        """Lets deltas gather; ends early when a message is full or nothing more can come."""
        rest = self._sent_at + COALESCE_SECONDS - asyncio.get_running_loop().time()
        if rest <= 0:
            return
        try:
            async with asyncio.timeout(rest):
                await self._full.wait()
        except TimeoutError:
            pass

    async def _pump(self) -> None:
        limit = asyncio.timeout(self._deadline.remaining_seconds() + DEADLINE_GRACE_SECONDS)
        try:
            async with limit:
                await self._collect()
        except asyncio.CancelledError:
            self._error = self._with_facts(self._why or _cancelled())
        except Exception as error:
            self._error = error if not limit.expired() else self._with_facts(late())
            if self._closed and not isinstance(error, PenstockError):
                logger.exception("a flow failed after its client had gone")

    def _end(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            # Before its first step: nothing of it ran, so nothing of it could tell.
            self._error = self._why or _cancelled()
        self._over.set()
        self._full.set()
        self._arrived.set()

    def _with_facts(self, error: PenstockError) -> PenstockError:
        error.metadata |= self._facts
        return error

    async def _collect(self) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                self._done = self._done or isinstance(event, Done)
                self._waiting.append(event)
                self._waiting_characters += _characters(event)
                if self._is_full():
                    self._full.set()
                self._arrived.set()
                # The last event passes in any case: it must not wait for a reader.
                if len(self._waiting) >= WAITING_MAX and not self._done:
                    self._room.clear()
                    await self._room.wait()


def _characters(event: Event) -> int:
    if not isinstance(event, Delta):
        return 0
    return sum(
        len(delta.content)
        + len(delta.refusal)
        + sum(len(call.arguments_json) for call in delta.tool_calls)
        for delta in event.deltas
    )


def _cancelled() -> Cancelled:
    return Cancelled("the request was cancelled by its caller")


def _draining(what: str) -> Unavailable:
    return Unavailable(
        f"{what}; try again, another one answers",
        reason="ROUTER_DRAINING",
        retry_after_seconds=1,
    )


class Registry:
    """All requests under way in this process."""

    def __init__(self) -> None:
        self._running: set[Running] = set()
        self._draining = False

    def start(
        self,
        events: AsyncGenerator[Event, None],
        deadline: Deadline,
        facts: Mapping[str, str] = MappingProxyType({}),
    ) -> Running:
        """Begins a flow; see `Running`.

        Raises:
            Unavailable: ROUTER_DRAINING.
            CapacityExhausted: ROUTER_FULL.
        """
        self.check_room()
        running = Running(events, deadline, facts)
        self._running.add(running)
        running.task.add_done_callback(lambda _: self._running.discard(running))
        return running

    def check_room(self) -> None:
        if self._draining:
            raise _draining("this router is shutting down")
        if len(self._running) >= RUNNING_MAX:
            raise CapacityExhausted(
                f"this router has {RUNNING_MAX} requests under way; try again",
                reason="ROUTER_FULL",
                retry_after_seconds=1,
            )

    def __len__(self) -> int:
        return len(self._running)

    def stop_accepting(self) -> None:
        self._draining = True

    async def drain(self, grace_seconds: float) -> None:
        """Until nothing is under way; what is left after the grace is cut off and settled."""
        self.stop_accepting()
        await self._wait(grace_seconds)
        if self._running:
            logger.warning("cutting off %d requests after the grace", len(self._running))
            for running in list(self._running):
                running.close(_draining("the router shut down before the answer was complete"))
            await self._wait(SETTLE_SECONDS)

    async def _wait(self, seconds: float) -> None:
        tasks = [running.task for running in self._running]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
