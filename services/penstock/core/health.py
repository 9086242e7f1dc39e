"""Health as a set of named components. It starts unhealthy; SIGTERM is one more component going
false.
"""

from collections.abc import Iterable

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio


class Health:
    """SERVING exactly while every component is true."""

    def __init__(self, components: Iterable[str]) -> None:
        self._components: dict[str, bool] = dict.fromkeys(components, False)
        self.servicer = health_aio.HealthServicer()

    @property
    def ready(self) -> bool:
        return all(self._components.values())

    @property
    def waiting_for(self) -> list[str]:
        return [name for name, ok in self._components.items() if not ok]

    async def set(self, component: str, *, ok: bool) -> None:
        assert component in self._components, component
        self._components[component] = ok
        await self.publish()

    async def publish(self) -> None:
        state = health_pb2.HealthCheckResponse
        await self.servicer.set("", state.SERVING if self.ready else state.NOT_SERVING)
