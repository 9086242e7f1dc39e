"""What routers are told, from what Ray and the replicas said. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.capacity.ray import RayApplication, RayReplica
from penstock.capacity.v1 import capacity_pb2
from penstock.core.catalogue import application_of
from penstock.local.v1 import local_pb2

MISSES_MAX = 2
"""Probes in a row that a replica may miss: a busy machine delays one, a dead replica misses all."""

_STATES = {
    "STARTING": capacity_pb2.Replica.STATE_STARTING,
    "UPDATING": capacity_pb2.Replica.STATE_STARTING,
    "RECOVERING": capacity_pb2.Replica.STATE_STARTING,
    "STOPPING": capacity_pb2.Replica.STATE_STOPPING,
    "PENDING_MIGRATION": capacity_pb2.Replica.STATE_STOPPING,
}


@dataclass(frozen=True, slots=True)
class Health:
    """What the probes of one replica have shown."""

    stats: local_pb2.StatsResponse | None = None
    """The last that came."""
    misses: int = 0
    """In a row, since then."""

    def after(self, stats: local_pb2.StatsResponse | None) -> "Health":
        return Health(self.stats, self.misses + 1) if stats is None else Health(stats)


def pools(
    replicas_by_model: Mapping[str, int],
    applications: Mapping[str, RayApplication],
    health_by_address: Mapping[str, Health],
) -> list[capacity_pb2.Pool]:
    """One pool a configured model, in the catalogue's order; also of a model that Ray has not."""
    return [
        _pool(model, count, applications.get(application_of(model)), health_by_address)
        for model, count in replicas_by_model.items()
    ]


def _pool(
    model: str,
    target_replicas: int,
    application: RayApplication | None,
    health_by_address: Mapping[str, Health],
) -> capacity_pb2.Pool:
    return capacity_pb2.Pool(
        model=model,
        application=application_of(model),
        target_replicas=target_replicas,
        replicas=[_replica(r, health_by_address) for r in application.replicas]
        if application
        else [],
        status=application.status if application else "not deployed",
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
    if replica.state != "RUNNING":
        return _STATES.get(replica.state, capacity_pb2.Replica.STATE_STARTING)
    if not replica.address:
        # Ray lists the address a moment after the state.
        return capacity_pb2.Replica.STATE_STARTING
    if health.misses > MISSES_MAX or (health.stats is not None and not health.stats.healthy):
        return capacity_pb2.Replica.STATE_UNHEALTHY
    if health.stats is None:
        return capacity_pb2.Replica.STATE_STARTING
    return capacity_pb2.Replica.STATE_READY
