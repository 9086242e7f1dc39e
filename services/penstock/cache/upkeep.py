"""What goes on beside the calls: leases are renewed, lost flights noticed, old entries removed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from penstock.cache.flights import LEASE_MS, Led, Waits
from penstock.cache.lookups import Lookups
from penstock.cache.store.base import Store
from penstock.core.errors import Unavailable

logger = logging.getLogger(__name__)

RENEW_SECONDS = LEASE_MS / 1000 / 3
"""Two renewals may fail before a lease runs out."""

POLL_SECONDS = 1.0
"""How late a lease that ran out is noticed: no notice comes from a process that was killed."""

SWEEP_SECONDS = 30.0
"""Between two sweeps of a quiet cache; look-ups never find what expired, swept or not."""

SWEEP_EARLY_SHARE = 16
"""A sweep comes early once a sixteenth of the limit was stored: a process passes it by no more."""


class Upkeep:
    def __init__(
        self, store: Store, led: Led, waits: Waits, lookups: Lookups, *, bytes_max: int
    ) -> None:
        self._store = store
        self._led = led
        self._waits = waits
        self._lookups = lookups
        self._bytes_max = bytes_max
        self._stored_bytes = 0
        self._sweep_now = asyncio.Event()

    def stored(self, size_bytes: int) -> None:
        self._stored_bytes += size_bytes
        if self._stored_bytes >= self._bytes_max // SWEEP_EARLY_SHARE:
            self._sweep_now.set()

    async def run(self) -> None:
        """Runs for ever; an outage only makes it wait."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_repeat(self.renew, lambda: asyncio.sleep(RENEW_SECONDS)))
            group.create_task(_repeat(self.poll, lambda: asyncio.sleep(POLL_SECONDS)))
            group.create_task(_repeat(self.sweep, self._next_sweep))

    async def renew(self) -> None:
        flights = self._led.to_renew()
        if flights:
            await self._store.renew(flights, LEASE_MS)

    async def poll(self) -> None:
        flights = self._waits.flights
        if flights:
            self._waits.look_again(await self._store.ended(flights))

    async def sweep(self) -> None:
        self._sweep_now.clear()
        self._stored_bytes = 0
        used, self._lookups.used = self._lookups.used, set()
        if used:
            await self._store.touch(list(used))
        swept = await self._store.sweep(self._bytes_max)
        if swept.expired or swept.evicted:
            logger.info(
                "swept: %d expired, %d evicted, %d bytes stay",
                swept.expired,
                swept.evicted,
                swept.size_bytes,
            )

    async def _next_sweep(self) -> None:
        try:
            async with asyncio.timeout(SWEEP_SECONDS):
                await self._sweep_now.wait()
        except TimeoutError:
            return


async def _repeat(
    step: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[None]]
) -> None:
    while True:
        await pause()
        try:
            await step()
        except Unavailable as error:
            logger.warning("%s: %s", step.__name__, error.message)
        except Exception:
            # The next round may do better; without upkeep the cache would fill up silently.
            logger.exception("%s failed", step.__name__)
