"""Looks at Ray and at the replicas, holds the replica counts, and tells everyone who watches."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping

from penstock.capacity import snapshot
from penstock.capacity.probe import Probe
from penstock.capacity.ray import RayApi, RayApplication, RayUnreachable
from penstock.capacity.snapshot import Health, Wanted
from penstock.capacity.v1 import capacity_pb2
from penstock.core.catalogue import application_of
from penstock.core.clock import Clock

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Ray's API has no watch: it is asked; an answer costs it about 10 ms."""

BEAT_SECONDS = 1.5
"""Also without a change: routers are promised a sign of life every two seconds."""

Catalogue = Callable[[], Mapping[str, Wanted]]
"""What is wanted of each model, as the catalogue has it now."""


class Watcher:
    """`run` looks for ever; `snapshots` may be iterated by any number of routers."""

    def __init__(
        self,
        ray: RayApi,
        probe: Probe,
        catalogue: Catalogue,
        clock: Clock,
        *,
        poll_seconds: float = POLL_SECONDS,
        beat_seconds: float = BEAT_SECONDS,
    ) -> None:
        self._ray = ray
        self._probe = probe
        self._catalogue = catalogue
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._beat_seconds = beat_seconds
        self._applications: dict[str, RayApplication] = {}
        self._health: dict[str, Health] = {}
        self._ray_reachable = False
        self._lacking = ""
        self._has_probed = False
        self._latest: capacity_pb2.Snapshot | None = None
        self._published = asyncio.Condition()
        self.ray_seen = asyncio.Event()
        """Set when Ray has answered for the first time."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_for_ever())
            tasks.create_task(self._probe_for_ever())
            tasks.create_task(self._beat_for_ever())

    async def snapshots(self) -> AsyncIterator[capacity_pb2.Snapshot]:
        """The latest, then each new one; a slow reader skips, it never lags."""
        sequence = 0
        while True:
            latest = await self._newer_than(sequence)
            sequence = latest.sequence
            yield latest

    async def _newer_than(self, sequence: int) -> capacity_pb2.Snapshot:
        async with self._published:
            while self._latest is None or self._latest.sequence <= sequence:
                await self._published.wait()
            return self._latest

    async def _look_for_ever(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._poll_seconds)

    async def _probe_for_ever(self) -> None:
        await self.ray_seen.wait()
        while True:
            await self.probe()
            await asyncio.sleep(self._poll_seconds)

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._beat_seconds)
            await self._publish(is_beat=True)

    async def look(self) -> None:
        """Asks Ray once, and sets the counts that are not as configured."""
        try:
            self._applications = await self._ray.applications()
            if not self._ray_reachable:
                logger.info("Ray's API answers")
            self._ray_reachable = True
            self.ray_seen.set()
            await self._hold_counts()
            await self._note_lacking()
        except RayUnreachable as error:
            # Addresses stay as last known: a head that restarts must not look like an empty pool.
            if self._ray_reachable:
                logger.warning("%s; the last known replicas stay in use", error)
            self._ray_reachable = False
        await self._publish()

    async def probe(self) -> None:
        """Asks every replica once, all at the same time."""
        targets = {
            replica.address: application.name
            for application in self._applications.values()
            for replica in application.replicas
            if replica.address
        }
        for address in self._health.keys() - targets.keys():
            del self._health[address]
            await self._probe.forget(address)
        answers = await asyncio.gather(*(self._probe.stats(a, n) for a, n in targets.items()))
        for address, stats in zip(targets, answers, strict=True):
            self._health[address] = self._health.get(address, Health()).after(stats)
        self._has_probed = True
        await self._publish()

    async def _hold_counts(self) -> None:
        for model, wanted in self._catalogue().items():
            count, application = wanted.replicas, self._applications.get(application_of(model))
            if application and application.settled and application.target_replicas != count:
                logger.info("%s: %d replicas become %d", model, application.target_replicas, count)
                await self._ray.scale(application, count)

    async def _note_lacking(self) -> None:
        """Asks why replicas are not there, while some are not."""
        catalogue, lacking = self._catalogue(), ""
        found = [(w, self._applications.get(application_of(m))) for m, w in catalogue.items()]
        if any(application and snapshot.is_short(w, application) for w, application in found):
            with contextlib.suppress(RayUnreachable):
                # Replicas are no less known for it.
                lacking = snapshot.shortfall(catalogue.values(), await self._ray.resources())
        if lacking and lacking != self._lacking:
            logger.warning("%s", lacking)
        self._lacking = lacking

    async def _publish(self, *, is_beat: bool = False) -> None:
        """Sends what is known, where it differs from what was sent or a sign of life is due."""
        if self._ray_reachable and not self._has_probed:
            # Replicas that serve would be told as starting, and routers of before would spill.
            return
        fresh = capacity_pb2.Snapshot(
            pools=snapshot.pools(
                self._catalogue(), self._applications, self._health, self._lacking
            ),
            ray_reachable=self._ray_reachable,
        )
        last = self._latest
        if not is_beat and last is not None and _same(fresh, last):
            return
        fresh.sequence = last.sequence + 1 if last else 1
        fresh.taken_at.FromMicroseconds(round(self._clock.unix_seconds() * 1_000_000))
        async with self._published:
            self._latest = fresh
            self._published.notify_all()


def _same(one: capacity_pb2.Snapshot, other: capacity_pb2.Snapshot) -> bool:
    return one.ray_reachable == other.ray_reachable and list(one.pools) == list(other.pools)
