"""The watcher over a Ray and replicas that are told what to say."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from penstock.capacity.ray import RayApplication, RayReplica, RayUnreachable, Resources
from penstock.capacity.snapshot import Wanted
from penstock.capacity.v1 import capacity_pb2
from penstock.capacity.watcher import Watcher
from penstock.core.clock import SystemClock
from penstock.local.v1 import local_pb2


class FakeRay:
    def __init__(self) -> None:
        self.reachable = True
        self.app = RayApplication(
            "local-m",
            "R",
            "HEALTHY",
            1,
            (RayReplica("r", "RUNNING", "h:1"),),
            settled=True,
        )
        self.scaled: list[tuple[str, int]] = []
        self.cpus: float | None = 2

    def change(self, **fields: object) -> None:
        known = {name: getattr(self.app, name) for name in RayApplication.__slots__}
        self.app = RayApplication(**{**known, **fields})

    async def applications(self) -> dict[str, RayApplication]:
        if not self.reachable:
            raise RayUnreachable("refused")
        return {self.app.name: self.app}

    async def scale(self, application: RayApplication, replicas: int) -> None:
        self.scaled.append((application.name, replicas))

    async def resources(self) -> Resources:
        if self.cpus is None:
            raise RayUnreachable("no such page")
        return Resources(self.cpus, gpus=0)


class FakeProbe:
    def __init__(self) -> None:
        self.answer: local_pb2.StatsResponse | None = local_pb2.StatsResponse(healthy=True)
        self.forgotten: list[str] = []

    async def stats(self, address: str, application: str) -> local_pb2.StatsResponse | None:
        return self.answer

    async def forget(self, address: str) -> None:
        self.forgotten.append(address)


class Stand:
    def __init__(self) -> None:
        self.ray = FakeRay()
        self.probe = FakeProbe()
        self.wanted = {"m": Wanted(1)}
        self.watcher = Watcher(self.ray, self.probe, lambda: self.wanted, SystemClock())
        self.stream: AsyncIterator[capacity_pb2.Snapshot] = self.watcher.snapshots()

    async def round(self) -> None:
        await self.watcher.look()
        await self.watcher.probe()

    async def snapshot(self) -> capacity_pb2.Snapshot:
        return await asyncio.wait_for(anext(self.stream), 5)


@pytest.fixture
def stand() -> Stand:
    return Stand()


async def test_a_ready_replica_is_told_with_its_address(stand: Stand) -> None:
    await stand.round()
    snapshot = await stand.snapshot()
    (replica,) = snapshot.pools[0].replicas
    assert (replica.address, replica.state) == ("h:1", capacity_pb2.Replica.STATE_READY)
    assert snapshot.ray_reachable
    assert snapshot.taken_at.seconds > 1_700_000_000


async def test_the_first_that_is_told_of_a_replica_is_not_that_it_is_starting(stand: Stand) -> None:
    await stand.round()
    first = await stand.snapshot()
    assert (1, capacity_pb2.Replica.STATE_READY) == (
        first.sequence,
        first.pools[0].replicas[0].state,
    )


async def test_each_change_is_a_snapshot_and_no_change_is_none(stand: Stand) -> None:
    await stand.round()
    first = await stand.snapshot()
    await stand.round()
    await stand.round()
    stand.probe.answer = local_pb2.StatsResponse(healthy=True, load=local_pb2.Load(running=1))
    await stand.round()
    second = await stand.snapshot()
    assert second.sequence == first.sequence + 1
    assert second.pools[0].replicas[0].load.running == 1


async def test_a_late_reader_gets_the_latest_at_once(stand: Stand) -> None:
    await stand.round()
    stand.ray.change(status="UPSCALING")
    await stand.round()
    assert (await stand.snapshot()).pools[0].status == "UPSCALING"


async def test_ray_out_of_reach_keeps_the_last_known_addresses(stand: Stand) -> None:
    await stand.round()
    stand.ray.reachable = False
    await stand.round()
    snapshot = await stand.snapshot()
    assert not snapshot.ray_reachable
    assert snapshot.pools[0].replicas[0].address == "h:1"
    assert snapshot.pools[0].replicas[0].state == capacity_pb2.Replica.STATE_READY
    stand.ray.reachable = True
    await stand.round()
    assert (await stand.snapshot()).ray_reachable


async def test_ray_never_seen_is_told_as_an_empty_pool(stand: Stand) -> None:
    stand.ray.reachable = False
    await stand.watcher.look()
    snapshot = await stand.snapshot()
    assert (snapshot.ray_reachable, len(snapshot.pools[0].replicas)) == (False, 0)
    assert not stand.watcher.ray_seen.is_set()


async def test_the_configured_count_is_held(stand: Stand) -> None:
    await stand.round()
    assert stand.ray.scaled == []
    stand.wanted = {"m": Wanted(3)}
    await stand.watcher.look()
    assert stand.ray.scaled == [("local-m", 3)]
    stand.ray.change(target_replicas=3)
    await stand.watcher.look()
    assert stand.ray.scaled == [("local-m", 3)]
    stand.ray.change(target_replicas=0)
    await stand.watcher.look()
    assert stand.ray.scaled == [("local-m", 3), ("local-m", 3)]


async def test_a_count_that_cannot_be_held_is_told_until_it_can(stand: Stand) -> None:
    stand.wanted = {"m": Wanted(3)}
    stand.ray.change(target_replicas=3)
    await stand.round()
    pool = (await stand.snapshot()).pools[0]
    assert pool.status.startswith("all replicas need 3 CPUs and Ray has 2")
    stand.ray.cpus = None
    await stand.round()
    snapshot = await stand.snapshot()
    assert (True, "HEALTHY") == (snapshot.ray_reachable, snapshot.pools[0].status)


async def test_an_application_being_deployed_is_not_scaled(stand: Stand) -> None:
    stand.wanted = {"m": Wanted(2)}
    stand.ray.change(settled=False)
    await stand.watcher.look()
    assert stand.ray.scaled == []


async def test_a_replica_that_left_is_forgotten(stand: Stand) -> None:
    await stand.round()
    stand.ray.change(replicas=())
    await stand.round()
    assert stand.probe.forgotten == ["h:1"]


async def test_a_replica_that_is_silent_becomes_unhealthy(stand: Stand) -> None:
    await stand.round()
    stand.probe.answer = None
    for _ in range(3):
        await stand.round()
    (replica,) = (await stand.snapshot()).pools[0].replicas
    assert replica.state == capacity_pb2.Replica.STATE_UNHEALTHY


async def test_it_gives_a_sign_of_life_without_a_change() -> None:
    stand = Stand()
    watcher = Watcher(
        stand.ray,
        stand.probe,
        lambda: stand.wanted,
        SystemClock(),
        poll_seconds=0.01,
        beat_seconds=0.05,
    )
    running = asyncio.create_task(watcher.run())
    stream = watcher.snapshots()
    async with asyncio.timeout(5):
        snapshots = [await anext(stream) for _ in range(5)]
    sequences = [s.sequence for s in snapshots]
    assert sequences == sorted(set(sequences))
    assert list(snapshots[-1].pools) == list(snapshots[-2].pools)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
