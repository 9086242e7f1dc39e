"""The cache's object graph, and its life from start to drain."""

import asyncio
import contextlib
import uuid
from dataclasses import dataclass

import asyncpg

from penstock.cache.config import Config
from penstock.cache.flights import Led, Waits
from penstock.cache.listener import Listener
from penstock.cache.lookups import Lookups
from penstock.cache.operations import Operations
from penstock.cache.service import CacheService
from penstock.cache.store.postgres import PostgresStore
from penstock.cache.upkeep import Upkeep
from penstock.cache.v1.cache_pb2 import DESCRIPTOR
from penstock.cache.v1.cache_pb2_grpc import add_CacheServiceServicer_to_server
from penstock.core.clock import Clock, SystemClock
from penstock.core.health import Health
from penstock.core.postgres import create_pool
from penstock.core.server import Server
from penstock.core.telemetry import Telemetry
from penstock.core.telemetry_server import TraceInterceptor

STATEMENT_TIMEOUT_MS = 2_000
"""A cache that is slower than this is no help; its callers gave up long before."""

LOCK_TIMEOUT_MS = 500
"""On a flight's row that another batch holds: such a batch takes milliseconds."""

STREAMS_END_SECONDS = 2.0
"""What is being stored at the drain may take one statement's time."""


@dataclass
class Cache:
    """One process of the service."""

    server: Server
    health: Health
    service: CacheService
    upkeep: Upkeep
    listener: Listener
    pool: asyncpg.Pool

    async def serve(self, stop: asyncio.Event) -> None:
        """Until `stop` is set, then drains.

        Raises:
            MigrationError: the schema is newer than this program, or was changed.
            PortInUse: another process listens there.
        """
        await self.server.start()
        stopping = asyncio.create_task(stop.wait())
        working = [
            asyncio.create_task(self.listener.run()),
            asyncio.create_task(self.upkeep.run()),
        ]
        try:
            done, _ = await asyncio.wait({stopping, *working}, return_when=asyncio.FIRST_COMPLETED)
            await self._drain()
            for task in done - {stopping}:
                task.result()
        finally:
            for task in (stopping, *working):
                task.cancel()
            await asyncio.gather(stopping, *working, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STREAMS_END_SECONDS):
                    await self.pool.close()

    async def _drain(self) -> None:
        await self.health.set("running", ok=False)
        self.service.end_streams()
        await self.server.stop(STREAMS_END_SECONDS)


async def wire(config: Config, telemetry: Telemetry, clock: Clock | None = None) -> Cache:
    """Opens no connection yet: PostgreSQL may come later."""
    clock = clock or SystemClock()
    pool = await create_pool(
        config.dsn.get_secret_value(),
        application_name="penstock-cache",
        connections_max=config.connections_max,
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        statement_timeout_ms=STATEMENT_TIMEOUT_MS,
        # An answer that is lost in a crash is generated again: not worth a sync to disk each.
        synchronous_commit=False,
    )
    store = PostgresStore(pool)
    waits, led = Waits(), Led(clock)
    lookups = Lookups(store, waits, uuid.uuid4)
    upkeep = Upkeep(store, led, waits, lookups, bytes_max=config.bytes_max)
    operations = Operations(
        store,
        lookups,
        led,
        waits,
        clock,
        entry_bytes_max=config.entry_bytes_max,
        on_stored=upkeep.stored,
    )
    service = CacheService(operations, lookups, led, telemetry.operation_span)
    health = Health(["postgres", "running"])
    await health.set("running", ok=True)

    async def set_ready(ready: bool) -> None:
        await health.set("postgres", ok=ready)

    server = Server(
        config.listen,
        lambda grpc_server: add_CacheServiceServicer_to_server(service, grpc_server),
        [DESCRIPTOR.services_by_name["CacheService"].full_name],
        health,
        config.service_token.get_secret_value(),
        interceptors=[TraceInterceptor(telemetry)],
    )
    listener = Listener(config.dsn.get_secret_value(), waits, set_ready)
    return Cache(server, health, service, upkeep, listener, pool)
