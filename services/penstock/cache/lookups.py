"""A look-up from start to end: an entry, a flight to lead, or the wait for another's answer."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from penstock.cache.flights import LEASE_MS, Waits
from penstock.cache.store.base import Ask, Flight, Found, Key, Store, Verdict
from penstock.cache.store.micro_batch import MicroBatch

USED_KEPT = 10_000
"""Hits remembered until the next sweep; a busier cache forgets some, and evicts less well."""


@dataclass(frozen=True, slots=True)
class Look:
    key: Key
    joins: bool
    wait_ms_max: int
    max_age_seconds: int | None = None


class Lookups:
    """Look-ups of one process, batched into few statements.

    Attributes:
        used: Keys that were hit since the last sweep.
    """

    def __init__(self, store: Store, waits: Waits, new_token: Callable[[], UUID]) -> None:
        self.used: set[Key] = set()
        self._asks: MicroBatch[Ask, Found] = MicroBatch(store.look_up)
        self._gives_up: MicroBatch[Flight, None] = MicroBatch(self._abandon)
        self._store = store
        self._waits = waits
        self._new_token = new_token

    async def look_up(self, look: Look, on_wait: Callable[[], None]) -> Found:
        """HIT, SHARED, LEAD, MISS or WAIT_EXPIRED. `on_wait` is called once when it begins to wait.

        Cancelled, it leaves nothing behind: a flight that it came to lead is abandoned.

        Raises:
            Unavailable: the store is away.
        """
        awaited: UUID | None = None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as waiting:
                while True:
                    found = await self._ask(look, awaited)
                    if found.verdict is not Verdict.WAIT:
                        return self._found(look, found, waited=awaited is not None)
                    assert found.token is not None
                    if awaited is None:
                        waiting.reschedule(loop.time() + look.wait_ms_max / 1000)
                        on_wait()
                    awaited = found.token
                    answer = await self._waits.end_of(Flight(look.key, awaited))
                    if answer is not None:
                        return answer
        except TimeoutError:
            return Found(Verdict.WAIT_EXPIRED)

    def abandon(self, flight: Flight) -> "asyncio.Future[None]":
        """Ends the flight; the future tells when the store has it."""
        return self._gives_up.submit(flight)

    def give_up(self, flight: Flight) -> None:
        """Like `abandon`, for those who cannot wait. If the store is away, the lease ends it."""
        self.abandon(flight).add_done_callback(_ignore)

    def _found(self, look: Look, found: Found, *, waited: bool) -> Found:
        if found.verdict is Verdict.HIT:
            if len(self.used) < USED_KEPT:
                self.used.add(look.key)
            if waited:
                return replace(found, verdict=Verdict.SHARED)
        return found

    async def _ask(self, look: Look, awaited: UUID | None) -> Found:
        ask = Ask(
            look.key,
            joins=look.joins,
            token=self._new_token(),
            lease_ms=LEASE_MS,
            max_age_seconds=look.max_age_seconds,
            awaited=awaited,
        )
        answer = self._asks.submit(ask)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda done: self._give_back(look.key, done))
            raise

    def _give_back(self, key: Key, done: "asyncio.Future[Found]") -> None:
        """Nobody wants what was asked for any more: a flight that it leads is ended."""
        if done.cancelled() or done.exception() is not None:
            return
        found = done.result()
        if found.verdict is Verdict.LEAD and found.token is not None:
            self.give_up(Flight(key, found.token))

    async def _abandon(self, flights: Sequence[Flight]) -> list[None]:
        await self._store.abandon(flights)
        for flight in flights:
            self._waits.end(flight.token)
        return [None] * len(flights)


def _ignore(done: "asyncio.Future[None]") -> None:
    """The lease ends a flight that could not be abandoned; the error needs no second reader."""
    if not done.cancelled():
        done.exception()
