"""Attempts that a provider's rate limit refused wait until it frees up: in turn, in a bounded queue
for each pool, and never beyond the request's deadline.

Only the first of a queue asks the ledger again, when the time has come that the ledger named, or,
for what is given back (calls in flight, tokens), when one of this router's own attempts on the pool
has ended. A limit of a key, a team or an organisation is not waited for: its owner is told.
"""

import asyncio
import contextlib
import itertools
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from penstock.core.clock import Clock
from penstock.core.deadline import Deadline
from penstock.core.errors import RateLimited
from penstock.router.ledger_errors import POOL

GIVEN_BACK = frozenset({"in_flight", "tokens"})
"""Units of which an attempt that ends gives something back."""

RETRY_SECONDS_MIN = 0.01
"""Two clocks never agree: a window that ends in less than this is not asked about in a spin."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the waiting: how many a pool, and what is left of the deadline for the attempt itself."""

    waiting_max: int
    margin_seconds: float


@dataclass(eq=False, slots=True)
class _Waiter:
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """It is the first now, or something was given back."""


@dataclass(eq=False, slots=True)
class _Queue:
    """Of one pool: who waits, and what the ledger said last."""

    refusal: RateLimited
    frees_at: float = float("inf")
    """On the monotonic clock."""
    ends: int = 0
    """How many attempts of its providers had ended when the refused one was asked for."""
    providers: set[str] = field(default_factory=set)
    waiters: deque[_Waiter] = field(default_factory=deque)

    @property
    def gives_back(self) -> bool:
        return self.refusal.metadata.get("unit") in GIVEN_BACK

    def wake(self) -> None:
        if self.waiters:
            self.waiters[0].moved.set()


class Waiting:
    """All pools' queues of one router; belongs to one event loop."""

    def __init__(self, limits: Callable[[], Limits], clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._by_pool: dict[str, _Queue] = {}
        self._by_provider: dict[str, _Queue] = {}
        self._under_way: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return sum(len(queue.waiters) for queue in self._by_pool.values())

    async def admitted(
        self, provider: str, deadline: Deadline, reserve: Callable[[], Awaitable[None]]
    ) -> None:
        """Reserves; where a limit of the provider's pool is full, as soon as it is this one's turn.
        Whoever was admitted says `ended` once it is resolved.

        Raises:
            RateLimited: a limit of the caller's own; or of the pool, and it does not free up in
                time, or too many wait. Its `retry_after_seconds` is what is true now.
            PenstockError: see `ports.Ledger.reserve`.
        """
        queue = self._by_provider.get(provider)
        if queue is None or not queue.waiters:
            ends = self._ends[provider]
            try:
                await reserve()
            except RateLimited as refused:
                queue = self._learn(provider, refused, ends)
            else:
                self._under_way[provider] += 1
                return
        await self._in_turn(queue, deadline, reserve)
        self._under_way[provider] += 1

    def ended(self, provider: str) -> None:
        """An attempt that was admitted is resolved: what it held was given back."""
        self._under_way[provider] -= 1
        self._ends[provider] += 1
        queue = self._by_provider.get(provider)
        if queue is not None and queue.gives_back:
            queue.wake()

    async def _in_turn(
        self, queue: _Queue, deadline: Deadline, reserve: Callable[[], Awaitable[None]]
    ) -> None:
        limits = self._limits()
        waiter = _Waiter()
        if len(queue.waiters) >= limits.waiting_max:
            raise self._refusal(queue)
        queue.waiters.append(waiter)
        try:
            while True:
                await self._turn(queue, waiter, deadline, limits.margin_seconds)
                ends = self._ends_of(queue)
                try:
                    await reserve()
                except RateLimited as refused:
                    self._hear(queue, refused, ends)
                else:
                    return
        finally:
            was_first = queue.waiters[0] is waiter
            queue.waiters.remove(waiter)
            if was_first:
                queue.wake()

    async def _turn(
        self, queue: _Queue, waiter: _Waiter, deadline: Deadline, margin_seconds: float
    ) -> None:
        """Returns when it is the first and something may have freed up."""
        while True:
            is_first = queue.waiters[0] is waiter
            frees_in = queue.frees_at - self._clock.monotonic_seconds()
            left_seconds = deadline.remaining_seconds() - margin_seconds
            if left_seconds <= 0:
                raise self._refusal(queue)
            has_freed = frees_in <= 0 or self._was_given_back(queue)
            if is_first and (waiter.moved.is_set() or has_freed):
                waiter.moved.clear()
                return
            if frees_in > left_seconds and not self._may_be_given_back(queue):
                raise self._refusal(queue)
            waiter.moved.clear()
            with contextlib.suppress(TimeoutError):
                pause_seconds = min(left_seconds, frees_in) if is_first else left_seconds
                async with asyncio.timeout(max(RETRY_SECONDS_MIN, pause_seconds)):
                    await waiter.moved.wait()

    def _ends_of(self, queue: _Queue) -> int:
        return sum(self._ends[provider] for provider in queue.providers)

    def _was_given_back(self, queue: _Queue) -> bool:
        """Something, since what was refused last was asked for."""
        return queue.gives_back and self._ends_of(queue) != queue.ends

    def _may_be_given_back(self, queue: _Queue) -> bool:
        under_way = sum(self._under_way[provider] for provider in queue.providers)
        return queue.gives_back and (under_way > 0 or self._was_given_back(queue))

    def _learn(self, provider: str, refused: RateLimited, ends: int) -> _Queue:
        """The queue of the pool that refused; raises what is no pool's. `ends`: of the provider,
        when it was asked for.
        """
        pool = _pool_of(refused)
        if pool is None:
            raise refused
        queue = self._by_pool.setdefault(pool, _Queue(refused))
        queue.providers.add(provider)
        self._by_provider[provider] = queue
        self._hear(queue, refused, self._ends_of(queue) - (self._ends[provider] - ends))
        return queue

    def _hear(self, queue: _Queue, refused: RateLimited, ends: int) -> None:
        after = refused.retry_after_seconds
        if _pool_of(refused) is None or after is None:
            # Without a time it asks for more than the limit: it can never succeed.
            raise refused
        queue.refusal, queue.ends = refused, ends
        queue.frees_at = self._clock.monotonic_seconds() + max(RETRY_SECONDS_MIN, after)
        for waiter in itertools.islice(queue.waiters, 1, None):
            waiter.moved.set()  # it may be too late for some of them now

    def _refusal(self, queue: _Queue) -> RateLimited:
        said = queue.refusal
        frees_in = max(0.0, queue.frees_at - self._clock.monotonic_seconds())
        return RateLimited(said.message, metadata=said.metadata, retry_after_seconds=frees_in)


def _pool_of(refused: RateLimited) -> str | None:
    if refused.metadata.get("account_kind") != POOL:
        return None
    return refused.metadata.get("account_id", "")
