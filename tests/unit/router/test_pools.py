"""Which replica is asked, who waits, what the policy sees. No server: nothing is sent here."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from penstock.capacity.v1 import capacity_pb2
from penstock.local.v1.local_pb2 import Load
from penstock.router.backends.base import PoolView
from penstock.router.pools import Lease, Pools
from support.chat import catalogue
from support.clock import HandClock
from support.fake_replica import snapshot

READY = capacity_pb2.Replica.STATE_READY
CATALOGUE = catalogue()
"""Its model `small` has two slots and a queue of four."""


def listed(
    name: str, *, state: capacity_pb2.Replica.State = READY, load: Load | None = None
) -> capacity_pb2.Replica:
    return capacity_pb2.Replica(id=name, address=f"127.0.0.1:{name[1:]}", state=state, load=load)


def load(running: int, waiting: int = 0, *, service_seconds: float = 0) -> Load:
    return Load(
        running=running, waiting=waiting, slots=2, queue_limit=4, service_seconds=service_seconds
    )


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def pools(clock: HandClock) -> AsyncIterator[Pools]:
    pools = Pools(catalogue=lambda: CATALOGUE, clock=clock)
    yield pools
    await pools.close()


def take(pools: Pools, choices: int = 1) -> Lease:
    lease = pools.take("small", choices)
    assert lease is not None
    return lease


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_unknown_pool_is_empty(pools: Pools) -> None:
    assert pools.take("small", 1) is None
    assert pools.view("small") == PoolView()
    assert not pools.has_replica("small")


async def test_the_least_busy_replica_is_asked(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1"), listed("r2")))
    names = sorted(take(pools).replica.id for _ in range(4))
    assert names == ["r1", "r1", "r2", "r2"]


async def test_a_request_for_n_choices_takes_n_slots(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    lease = take(pools, 2)
    assert pools.view("small").free_slots == 0
    lease.release()
    lease.release()
    assert pools.view("small").free_slots == 2


async def test_the_queue_is_used_when_the_slots_are_taken_and_no_further(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    for _ in range(6):
        take(pools)
    assert pools.take("small", 1) is None
    assert pools.view("small") == PoolView(1, 0, 0, expected_wait_ms=5000)


@pytest.mark.parametrize(
    "state",
    [
        capacity_pb2.Replica.STATE_STARTING,
        capacity_pb2.Replica.STATE_STOPPING,
        capacity_pb2.Replica.STATE_UNHEALTHY,
    ],
)
async def test_only_ready_replicas_are_asked(
    pools: Pools, state: capacity_pb2.Replica.State
) -> None:
    pools.apply(snapshot(listed("r1", state=state)))
    assert pools.take("small", 1) is None
    assert pools.view("small").ready_replicas == 0


async def test_what_other_routers_have_there_counts(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1", load=load(2)), listed("r2", load=load(0))))
    assert [take(pools).replica.id for _ in range(2)] == ["r2", "r2"]
    assert pools.view("small").free_slots == 0


async def test_our_own_calls_are_not_counted_twice(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    take(pools)
    pools.apply(snapshot(listed("r1", load=load(1))))
    assert pools.view("small").free_slots == 1


async def test_a_report_that_is_late_makes_no_phantoms(pools: Pools, clock: HandClock) -> None:
    pools.apply(snapshot(listed("r1")))
    leases = [take(pools), take(pools)]
    clock.now += 1
    for lease in leases:
        lease.release()
    pools.apply(snapshot(listed("r1", load=load(2))))
    assert pools.view("small").free_slots == 2
    clock.now += 4
    pools.apply(snapshot(listed("r1", load=load(2))))
    assert pools.view("small").free_slots == 0


async def test_a_report_that_was_not_renewed_is_forgotten(pools: Pools, clock: HandClock) -> None:
    pools.apply(snapshot(listed("r1", load=load(2))))
    clock.now += 11
    assert pools.view("small").free_slots == 2


async def test_the_expected_wait_follows_from_load(pools: Pools) -> None:
    one = load(2, 1, service_seconds=4.0)
    pools.apply(snapshot(listed("r1", load=one), listed("r2", load=load(2, service_seconds=4.0))))
    # Four slots of 4 s each free one a second; one waits already.
    assert pools.view("small").expected_wait_ms == 2000


async def test_a_replica_that_is_gone_is_forgotten_when_ray_says_so(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1"), listed("r2")))
    pools.apply(snapshot(listed("r2")))
    assert [take(pools).replica.id for _ in range(2)] == ["r2", "r2"]
    pools.apply(capacity_pb2.Snapshot(ray_reachable=True))
    assert not pools.has_replica("small")


async def test_while_ray_cannot_be_reached_the_last_known_replicas_stay(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    pools.apply(snapshot(ray_reachable=False))
    pools.apply(capacity_pb2.Snapshot(ray_reachable=False))
    assert take(pools).replica.id == "r1"


async def test_a_lease_outlives_its_replica(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    lease = take(pools)
    pools.apply(snapshot(listed("r2")))
    lease.release()
    assert take(pools).replica.id == "r2"


async def test_an_address_that_moved_is_another_replica(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    old = take(pools).replica
    moved = listed("r1")
    moved.address = "127.0.0.1:99"
    pools.apply(snapshot(moved))
    new = take(pools).replica
    assert (old.address, new.address) == ("127.0.0.1:1", "127.0.0.1:99")


async def test_a_replica_that_fails_is_ejected_and_probed(pools: Pools, clock: HandClock) -> None:
    pools.apply(snapshot(listed("r1")))
    for _ in range(CATALOGUE.routing.breaker_failures):
        lease = take(pools)
        lease.permit.failed()
        lease.release()
    assert pools.take("small", 1) is None
    assert pools.view("small").ready_replicas == 0
    clock.now += CATALOGUE.routing.breaker_open_seconds
    # Else the policy would never send the probe.
    assert pools.view("small") == PoolView(1, free_slots=1)
    probe = take(pools)
    assert pools.take("small", 1) is None
    probe.permit.succeeded()
    probe.release()
    assert pools.view("small").free_slots == 2


async def test_a_probe_that_is_given_up_lets_the_next_pass(pools: Pools, clock: HandClock) -> None:
    pools.apply(snapshot(listed("r1")))
    take(pools).replica.eject()
    clock.now += CATALOGUE.routing.breaker_open_seconds
    take(pools).release()
    assert pools.take("small", 1) is not None


async def test_a_replica_that_said_full_is_passed_over_for_a_moment(
    pools: Pools, clock: HandClock
) -> None:
    pools.apply(snapshot(listed("r1")))
    take(pools).release(refused=True)
    assert pools.take("small", 1) is None
    assert pools.view("small").free_slots == 0
    clock.now += 0.25
    assert pools.take("small", 1) is not None


async def test_waiters_are_served_in_their_order_and_nobody_overtakes(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    leases = [take(pools) for _ in range(6)]
    served: list[str] = []

    async def wait(name: str, choices: int) -> None:
        lease = await pools.wait("small", choices, seconds=60)
        assert lease is not None
        served.append(name)

    waiting = [asyncio.create_task(wait("first", 2)), asyncio.create_task(wait("second", 1))]
    await settled()
    leases[0].release()
    await settled()
    # The first needs two places: neither the second nor a newcomer passes it.
    assert served == []
    assert pools.take("small", 1) is None
    leases[1].release()
    await settled()
    leases[2].release()
    await asyncio.gather(*waiting)
    assert served == ["first", "second"]


async def test_two_places_that_free_at_once_serve_two_at_once(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    leases = [take(pools) for _ in range(6)]
    waiting = [asyncio.create_task(pools.wait("small", 1, seconds=60)) for _ in range(2)]
    await settled()
    leases[0].release()
    leases[1].release()
    await settled()
    assert [task.done() for task in waiting] == [True, True]


async def test_a_snapshot_wakes_who_waits(pools: Pools) -> None:
    waiting = asyncio.create_task(pools.wait("small", 1, seconds=60))
    await settled()
    pools.apply(snapshot(listed("r1")))
    lease = await waiting
    assert lease is not None


async def test_waiting_ends_with_its_time(pools: Pools, clock: HandClock) -> None:
    waiting = asyncio.create_task(pools.wait("small", 1, seconds=0.5))
    await settled()
    clock.now += 0.6
    assert await waiting is None


async def test_a_waiter_that_goes_away_leaves_the_way_free(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    leases = [take(pools) for _ in range(6)]
    first = asyncio.create_task(pools.wait("small", 1, seconds=60))
    second = asyncio.create_task(pools.wait("small", 1, seconds=60))
    await settled()
    first.cancel()
    await settled()
    leases[0].release()
    assert await second is not None


async def test_waiters_are_seen_by_the_policy(pools: Pools) -> None:
    pools.apply(snapshot(listed("r1")))
    for _ in range(6):
        take(pools)
    waiting = asyncio.create_task(pools.wait("small", 1, seconds=60))
    await settled()
    # Six are there already, one waits, two slots of 2 s each.
    assert pools.view("small").expected_wait_ms == 6000
    waiting.cancel()
