"""The local models' replicas: which there are, which is asked next, who waits for a place.

`apply` takes capacity's snapshots (`snapshot_feed.py` follows them); `take` and `wait` give leases.
It belongs to one event loop.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import grpc

from penstock.capacity.v1 import capacity_pb2
from penstock.core import channel
from penstock.core.catalogue import Catalogue
from penstock.core.clock import Clock
from penstock.router.backends.base import PoolView
from penstock.router.breaker import Breaker, Permit, trip_of
from penstock.router.replica import Replica

RECHECK_SECONDS = 0.1
"""Breakers and refusals end by time, not by an event: whoever waits looks again this often."""

SERVICE_SECONDS_DEFAULT = 2.0
"""Of one request in a slot, before any replica reported its own."""

STATE_READY = capacity_pb2.Replica.STATE_READY


@dataclass(eq=False, slots=True)
class Lease:
    """A place in a replica. Whoever has one releases it, and says by `permit` how it went."""

    replica: Replica
    choices: int
    permit: Permit
    _released: Callable[["Lease"], None]
    _is_open: bool = field(default=True, init=False)

    def release(self, *, refused: bool = False) -> None:
        """Gives the place back; `refused`: the replica said there was none. Safe to call twice."""
        if not self._is_open:
            return
        self._is_open = False
        self.permit.dropped()  # only where no verdict was given before
        self.replica.leave(self.choices)
        if refused:
            self.replica.refused()
        self._released(self)


@dataclass(eq=False, slots=True)
class _Waiter:
    choices: int
    moved: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False, slots=True)
class _Pool:
    replicas: dict[str, Replica] = field(default_factory=dict)
    waiters: deque[_Waiter] = field(default_factory=deque)

    @property
    def usable(self) -> Iterator[Replica]:
        return (r for r in self.replicas.values() if r.admits)

    def wake(self) -> None:
        if self.waiters:
            self.waiters[0].moved.set()


class Pools:
    """All local pools, by the model's name in the catalogue."""

    def __init__(
        self,
        *,
        catalogue: Callable[[], Catalogue],
        clock: Clock,
        connect: Callable[[str], grpc.aio.Channel] = channel.connect,
    ) -> None:
        self._catalogue = catalogue
        self._clock = clock
        self._connect = connect
        self._pools: dict[str, _Pool] = {}
        self._turn = itertools.count()
        self._closing: set[asyncio.Task[None]] = set()

    def apply(self, snapshot: capacity_pb2.Snapshot) -> None:
        """Takes over what capacity says. Calls in flight to replicas that are gone may end."""
        listed = {pool.model: pool for pool in snapshot.pools}
        for model, pool in listed.items():
            self._apply_pool(model, pool, is_complete=snapshot.ray_reachable)
        for model, known in self._pools.items():
            if model not in listed and snapshot.ray_reachable:
                for replica in list(known.replicas.values()):
                    self._retire(known, replica)
            known.wake()

    def _apply_pool(self, model: str, pool: capacity_pb2.Pool, *, is_complete: bool) -> None:
        known = self._pools.setdefault(model, _Pool())
        for listed in pool.replicas:
            replica = known.replicas.get(listed.id)
            if replica is not None and listed.address and replica.address != listed.address:
                self._retire(known, replica)
                replica = None
            if replica is None:
                if not listed.address:
                    continue
                replica = self._replica(model, pool.application, listed)
                known.replicas[listed.id] = replica
            replica.is_ready = listed.state == STATE_READY
            if listed.HasField("load"):
                replica.report(listed.load)
        if is_complete:
            # While Ray cannot be asked, what is missing from the list is not known to be gone.
            present = {listed.id for listed in pool.replicas}
            for replica in [r for r in known.replicas.values() if r.id not in present]:
                self._retire(known, replica)

    def _replica(self, model: str, application: str, listed: capacity_pb2.Replica) -> Replica:
        return Replica(
            listed,
            application=application,
            spec=self._catalogue().local(model),
            channel=self._connect(listed.address),
            breaker=Breaker(lambda: trip_of(self._catalogue().routing), self._clock),
            clock=self._clock,
        )

    def _retire(self, pool: _Pool, replica: Replica) -> None:
        del pool.replicas[replica.id]
        replica.is_retired = True
        if replica.in_flight == 0:
            self._close(replica)

    def _close(self, replica: Replica) -> None:
        task = asyncio.ensure_future(replica.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def take(self, model: str, choices: int, *, besides: Collection[Replica] = ()) -> Lease | None:
        """A place in the least busy replica; None: there is none, or others wait for it."""
        pool = self._pools.get(model)
        if pool is None or pool.waiters:
            return None
        return self._choose(model, pool, choices, besides)

    async def wait(self, model: str, choices: int, *, seconds: float) -> Lease | None:
        """A place as soon as one frees, first come, first served; None: not within `seconds`."""
        pool = self._pools.setdefault(model, _Pool())
        until = self._clock.monotonic_seconds() + seconds
        waiter = _Waiter(choices)
        pool.waiters.append(waiter)
        try:
            while True:
                waiter.moved.clear()
                if pool.waiters[0] is waiter:
                    lease = self._choose(model, pool, choices, ())
                    if lease is not None:
                        return lease
                left = until - self._clock.monotonic_seconds()
                if left <= 0:
                    return None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, RECHECK_SECONDS)):
                        await waiter.moved.wait()
        finally:
            pool.waiters.remove(waiter)
            pool.wake()

    def _choose(
        self, model: str, pool: _Pool, choices: int, besides: Collection[Replica]
    ) -> Lease | None:
        fitting = [r for r in pool.usable if r not in besides and r.has_room_for(choices)]
        if not fitting:
            return None
        # Equals take turns, so that an idle pool does not send everything to its first replica.
        offset = next(self._turn) % len(fitting)
        best = min(fitting[offset:] + fitting[:offset], key=lambda r: r.occupancy / r.slots)
        permit = best.breaker.enter()
        assert permit is not None
        best.enter(choices)
        return Lease(best, choices, permit, lambda lease: self._released(model, lease))

    def _released(self, model: str, lease: Lease) -> None:
        if lease.replica.is_retired and lease.replica.in_flight == 0:
            self._close(lease.replica)
        self._pools[model].wake()

    def has_replica(self, model: str) -> bool:
        """Whether any replica may be asked now."""
        pool = self._pools.get(model)
        return pool is not None and any(True for _ in pool.usable)

    def view(self, model: str) -> PoolView:
        pool = self._pools.get(model)
        return _view(pool) if pool else PoolView()

    def views(self) -> dict[str, PoolView]:
        return {model: _view(pool) for model, pool in self._pools.items()}

    async def close(self) -> None:
        for pool in self._pools.values():
            for replica in list(pool.replicas.values()):
                del pool.replicas[replica.id]
                self._close(replica)
        await asyncio.gather(*self._closing)


def _view(pool: _Pool) -> PoolView:
    replicas = list(pool.usable)
    if not replicas:
        return PoolView()
    waiting = sum(w.choices for w in pool.waiters)
    free = sum(r.free_slots for r in replicas)
    room = sum(r.queue_room for r in replicas)
    free_slots = max(0, free - waiting)
    return PoolView(
        ready_replicas=len(replicas),
        free_slots=free_slots,
        queue_room=max(0, room - max(0, waiting - free)),
        expected_wait_ms=0 if free_slots else _wait_ms(replicas, waiting),
    )


def _wait_ms(replicas: list[Replica], waiting: int) -> int:
    """Slots free one after the other, `slots` of them in one service time."""
    slots = sum(r.slots for r in replicas)
    ahead = max(0, sum(r.occupancy for r in replicas) + waiting - slots)
    reported = [r.service_seconds for r in replicas if r.service_seconds > 0]
    service = sum(reported) / len(reported) if reported else SERVICE_SECONDS_DEFAULT
    return max(1, round(1000 * service * (ahead + 1) / slots))
