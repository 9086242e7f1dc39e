"""Flights as this process sees them: those led through it, and those that are waited in here."""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from penstock.cache.store.base import Flight, Found, Key
from penstock.core.clock import Clock

FLIGHT_SECONDS_MAX = 900.0
"""A leader's lease is renewed no longer: more than the 600 s that a request may take by default. A
catalogue that allows more has its waiters lead anew."""

LEASE_MS = 5_000
"""How long a flight outlives a cache process that was killed. Renewed three times within."""

_ENDED_KEPT = 4_096
"""Ends that are remembered for a waiter that is told of the flight only after its end."""


class Led:
    """Flights whose leader lives on a stream of this process: their leases are renewed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flights: dict[UUID, tuple[Flight, float]] = {}

    def add(self, key: Key, token: UUID) -> None:
        self._flights[token] = (Flight(key, token), self._clock.monotonic_seconds())

    def remove(self, token: UUID) -> None:
        self._flights.pop(token, None)

    def to_renew(self) -> list[Flight]:
        """All that are not too old; those are forgotten, so that their lease runs out."""
        oldest = self._clock.monotonic_seconds() - FLIGHT_SECONDS_MAX
        for token in [t for t, (_, since) in self._flights.items() if since < oldest]:
            del self._flights[token]
        return [flight for flight, _ in self._flights.values()]


@dataclass(slots=True)
class _Wait:
    flight: Flight
    futures: "set[asyncio.Future[Found | None]]"


class Waits:
    """Who waits for which flight's end."""

    def __init__(self) -> None:
        self._waits: dict[UUID, _Wait] = {}
        self._ended: OrderedDict[UUID, None] = OrderedDict()

    async def end_of(self, flight: Flight) -> Found | None:
        """Returns at the flight's end: its answer where it is at hand; None: look again."""
        if flight.token in self._ended:
            return None
        wait = self._waits.setdefault(flight.token, _Wait(flight, set()))
        future: asyncio.Future[Found | None] = asyncio.get_running_loop().create_future()
        wait.futures.add(future)
        try:
            return await future
        finally:
            wait.futures.discard(future)
            if not wait.futures and self._waits.get(flight.token) is wait:
                del self._waits[flight.token]

    def end(self, token: UUID, found: Found | None = None) -> None:
        """The flight ended. Idempotent."""
        self._ended[token] = None
        if len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        self._wake(token, found)

    def look_again(self, tokens: Iterable[UUID] | None = None) -> None:
        """An end may have been missed: those who wait (for these flights) look again."""
        for token in list(self._waits if tokens is None else tokens):
            self._wake(token, None)

    @property
    def flights(self) -> list[Flight]:
        return [wait.flight for wait in self._waits.values()]

    def _wake(self, token: UUID, found: Found | None) -> None:
        wait = self._waits.pop(token, None)
        for future in wait.futures if wait else ():
            if not future.done():
                future.set_result(found)
