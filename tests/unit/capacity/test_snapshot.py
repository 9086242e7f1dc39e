import pytest

from penstock.capacity.ray import RayApplication, RayReplica, Resources
from penstock.capacity.snapshot import MISSES_MAX, Health, Wanted, pools, shortfall
from penstock.capacity.v1 import capacity_pb2
from penstock.local.v1 import local_pb2

State = capacity_pb2.Replica
WELL = Health(local_pb2.StatsResponse(healthy=True, load=local_pb2.Load(running=2, slots=4)))


def application(*replicas: RayReplica) -> dict[str, RayApplication]:
    app = RayApplication("local-m", "R", "HEALTHY", 1, replicas, settled=True)
    return {app.name: app}


@pytest.mark.parametrize(
    ("ray_state", "address", "health", "expected"),
    [
        ("RUNNING", "h:1", WELL, State.STATE_READY),
        ("RUNNING", "h:1", Health(WELL.stats, misses=MISSES_MAX), State.STATE_READY),
        ("RUNNING", "h:1", Health(WELL.stats, misses=MISSES_MAX + 1), State.STATE_UNHEALTHY),
        ("RUNNING", "h:1", Health(None, misses=1), State.STATE_STARTING),
        ("RUNNING", "h:1", Health(None, misses=MISSES_MAX + 1), State.STATE_UNHEALTHY),
        ("RUNNING", "h:1", Health(local_pb2.StatsResponse()), State.STATE_UNHEALTHY),
        ("RUNNING", "", Health(), State.STATE_STARTING),
        ("STARTING", "", Health(), State.STATE_STARTING),
        ("UPDATING", "h:1", WELL, State.STATE_STARTING),
        ("RECOVERING", "h:1", WELL, State.STATE_STARTING),
        ("STOPPING", "h:1", WELL, State.STATE_STOPPING),
        ("PENDING_MIGRATION", "h:1", WELL, State.STATE_STOPPING),
        ("A NEW WORD OF RAY", "h:1", WELL, State.STATE_STARTING),
    ],
)
def test_a_replicas_state(ray_state: str, address: str, health: Health, expected: int) -> None:
    found = application(RayReplica("r", ray_state, address))
    (pool,) = pools({"m": Wanted(1)}, found, {"h:1": health})
    (replica,) = pool.replicas
    assert replica.state == expected
    dialled = expected in (State.STATE_READY, State.STATE_UNHEALTHY)
    assert replica.address == (address if dialled else "")
    if expected == State.STATE_READY:
        assert replica.load.running == 2


def test_a_configured_model_that_ray_has_not_is_an_empty_pool() -> None:
    (pool,) = pools({"m": Wanted(3)}, {}, {})
    assert pool == capacity_pb2.Pool(
        model="m", application="local-m", target_replicas=3, status="not deployed"
    )


def test_an_application_that_is_not_configured_is_not_told() -> None:
    found = application(RayReplica("r", "RUNNING", "h:1"))
    assert [p.model for p in pools({"other": Wanted(1)}, found, {})] == ["other"]


def test_a_miss_keeps_the_last_answer_and_an_answer_forgets_the_misses() -> None:
    missed = WELL.after(None).after(None)
    assert missed == Health(WELL.stats, misses=2)
    assert WELL.stats is not None
    assert missed.after(WELL.stats) == WELL


def test_what_cannot_be_placed_is_told_by_its_limit() -> None:
    two = Resources(cpus=2, gpus=1)
    assert "" == shortfall([Wanted(2), Wanted(0, cpus=8)], two)
    assert "" == shortfall([Wanted(4, cpus=0.5, gpus=0.25)], two)
    told = shortfall([Wanted(2), Wanted(1, cpus=0.5)], two)
    assert told.startswith("all replicas need 2.5 CPUs and Ray has 2 to share out: lower")
    assert "need 2 GPUs and there are 1" in shortfall([Wanted(2, gpus=1)], two)


def test_a_pool_that_lacks_replicas_says_why_and_a_full_one_does_not() -> None:
    found = application(RayReplica("r", "RUNNING", "h:1"), RayReplica("s", "STARTING", ""))
    (short,) = pools({"m": Wanted(2)}, found, {}, "no room")
    (full,) = pools({"m": Wanted(1)}, found, {}, "no room")
    assert ("no room", 2, "HEALTHY") == (short.status, short.target_replicas, full.status)
