import pytest

from penstock.capacity.ray import RayApplication, RayReplica
from penstock.capacity.snapshot import MISSES_MAX, Health, pools
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
    (pool,) = pools({"m": 1}, found, {"h:1": health})
    (replica,) = pool.replicas
    assert replica.state == expected
    dialled = expected in (State.STATE_READY, State.STATE_UNHEALTHY)
    assert replica.address == (address if dialled else "")
    if expected == State.STATE_READY:
        assert replica.load.running == 2


def test_a_configured_model_that_ray_has_not_is_an_empty_pool() -> None:
    (pool,) = pools({"m": 3}, {}, {})
    assert pool == capacity_pb2.Pool(
        model="m", application="local-m", target_replicas=3, status="not deployed"
    )


def test_an_application_that_is_not_configured_is_not_told() -> None:
    found = application(RayReplica("r", "RUNNING", "h:1"))
    assert [p.model for p in pools({"other": 1}, found, {})] == ["other"]


def test_a_miss_keeps_the_last_answer_and_an_answer_forgets_the_misses() -> None:
    missed = WELL.after(None).after(None)
    assert missed == Health(WELL.stats, misses=2)
    assert WELL.stats is not None
    assert missed.after(WELL.stats) == WELL
