"""The object graph of capacity, and its life from start to drain."""

import asyncio
import contextlib

from penstock.capacity.config import CapacityConfig
from penstock.capacity.probe import GrpcProbe
from penstock.capacity.ray import RestRayApi
from penstock.capacity.service import CapacityService
from penstock.capacity.snapshot import Wanted
from penstock.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from penstock.capacity.watcher import Watcher
from penstock.core.clock import SystemClock
from penstock.core.config import LiveCatalogue
from penstock.core.health import Health
from penstock.core.server import Server

DRAIN_SECONDS = 1.0
"""Watch streams never end by themselves: routers reconnect to another capacity, or wait for it."""

RAY = "ray"


async def run(config: CapacityConfig, stop: asyncio.Event) -> None:
    """Serves until `stop` is set; ready once Ray has answered.

    Raises:
        ConfigError: the catalogue is faulty.
        PortInUse.
    """
    catalogue = LiveCatalogue(config.catalogue_path)
    ray = RestRayApi(config.ray_api, config.ray_token)
    probe = GrpcProbe(config.router_token)
    watcher = Watcher(
        ray,
        probe,
        lambda: {
            name: Wanted(model.replicas, model.cpus, model.gpus)
            for name, model in catalogue.current.models.items()
        },
        SystemClock(),
    )
    health = Health([RAY])
    server = Server(
        config.listen,
        lambda s: capacity_pb2_grpc.add_CapacityServiceServicer_to_server(
            CapacityService(watcher), s
        ),
        [capacity_pb2.DESCRIPTOR.services_by_name["CapacityService"].full_name],
        health,
        config.service_token,
    )
    await server.start()
    background = asyncio.create_task(_work(watcher, catalogue, health))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({background, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if background.done():
            background.result()
    finally:
        await health.set(RAY, ok=False)
        for task in (background, stopping):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await server.stop(DRAIN_SECONDS)
        await probe.close()
        await ray.close()


async def _work(watcher: Watcher, catalogue: LiveCatalogue, health: Health) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watcher.run())
        tasks.create_task(catalogue.watch())
        tasks.create_task(_report_ready(watcher, health))


async def _report_ready(watcher: Watcher, health: Health) -> None:
    await watcher.ray_seen.wait()
    await health.set(RAY, ok=True)
