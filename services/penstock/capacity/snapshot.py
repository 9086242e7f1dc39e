"""What routers are told, from what Ray and the replicas said. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penstock.capacity.ray import RayApplication, RayReplica, Resources
from penstock.capacity.v1 import capacity_pb2
from penstock.core.catalogue import application_of
from penstock.local.v1 import local_pb2

MISSES_MAX = 2
"""Probes in a row that a replica may miss: a busy machine delays one, a dead replica misses all."""

RUNNING = "RUNNING"

_STATES = {
    "STARTING": capacity_pb2.Replica.STATE_STARTING,
    "UPDATING": capacity_pb2.Replica.STATE_STARTING,
    "RECOVERING": capacity_pb2.Replica.STATE_STARTING,
    "STOPPING": capacity_pb2.Replica.STATE_STOPPING,
    "PENDING_MIGRATION": capacity_pb2.Replica.STATE_STOPPING,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of one model, by the catalogue."""

    replicas: int
    cpus: float = 1
    """Of one replica; so are its GPUs."""
    gpus: float = 0


@dataclass(frozen=True, slots=True)
class Health:
    """What the probes of one replica have shown."""

    stats: local_pb2.StatsResponse | None = None
    """The last that came."""
    misses: int = 0
    """In a row, since then."""

    def after(self, stats: local_pb2.StatsResponse | None) -> "Health":
        return Health(self.stats, self.misses + 1) if stats is None else Health(stats)


def shortfall(wanted: Iterable[Wanted], resources: Resources) -> str:
    """Which limit keeps all these replicas from being placed, and what to do; empty: none."""
    models = list(wanted)
    cpus = sum(model.replicas * model.cpus for model in models)
    gpus = sum(model.replicas * model.gpus for model in models)
    if gpus > resources.gpus:
        return (
            f"all replicas need {gpus:g} GPUs and there are {resources.gpus:g}: lower `replicas` "
            "or `gpus`, or add GPUs"
        )
    if cpus > resources.cpus:
        return (
            f"all replicas need {cpus:g} CPUs and Ray has {resources.cpus:g} to share out: lower "
            "`replicas` or `cpus`, or stop and start Penstock, for Ray is told their number at its "
            "start"
        )
    return ""


def is_short(wanted: Wanted, application: RayApplication) -> bool:
    running = sum(replica.state == RUNNING for replica in application.replicas)
    return running < wanted.replicas


def pools(
    wanted_by_model: Mapping[str, Wanted],
    applications: Mapping[str, RayApplication],
    health_by_address: Mapping[str, Health],
    lacking: str = "",
) -> list[capacity_pb2.Pool]:
    """One pool a configured model, in the catalogue's order; also of a model that Ray has not.
    `lacking` is what keeps replicas from being placed, where it is known (`shortfall`).
    """
    return [
        _pool(model, wanted, applications.get(application_of(model)), health_by_address, lacking)
        for model, wanted in wanted_by_model.items()
    ]


def _pool(
    model: str,
    wanted: Wanted,
    application: RayApplication | None,
    health_by_address: Mapping[str, Health],
    lacking: str,
) -> capacity_pb2.Pool:
    status = application.status if application else "not deployed"
    if lacking and application and is_short(wanted, application):
        # Ray's own words on it come late, and name neither the limit nor a remedy.
        status = lacking
    return capacity_pb2.Pool(
        model=model,
        application=application_of(model),
        target_replicas=wanted.replicas,
        replicas=[_replica(r, health_by_address) for r in application.replicas]
        if application
        else [],
        status=status,
    )


def _replica(replica: RayReplica, health_by_address: Mapping[str, Health]) -> capacity_pb2.Replica:
    health = health_by_address.get(replica.address, Health())
    state = _state(replica, health)
    is_running = state in (
        capacity_pb2.Replica.STATE_READY,
        capacity_pb2.Replica.STATE_UNHEALTHY,
    )
    return capacity_pb2.Replica(
        id=replica.id,
        address=replica.address if is_running else "",
        state=state,
        load=health.stats.load if is_running and health.stats else None,
    )


def _state(replica: RayReplica, health: Health) -> "capacity_pb2.Replica.State.ValueType":
    if replica.state != RUNNING:
        return _STATES.get(replica.state, capacity_pb2.Replica.STATE_STARTING)
    if not replica.address:
        # Ray lists the address a moment after the state.
        return capacity_pb2.Replica.STATE_STARTING
    if health.misses > MISSES_MAX or (health.stats is not None and not health.stats.healthy):
        return capacity_pb2.Replica.STATE_UNHEALTHY
    if health.stats is None:
        return capacity_pb2.Replica.STATE_STARTING
    return capacity_pb2.Replica.STATE_READY
