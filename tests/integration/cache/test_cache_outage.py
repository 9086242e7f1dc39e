"""PostgreSQL comes late, goes away and comes back: the cache recovers by itself."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from grpc_health.v1 import health_pb2

from penstock.cache.config import Config
from penstock.cache.v1.cache_pb2 import LookupResponse
from penstock.cache.wiring import wire
from penstock.core.postgres import MigrationError
from penstock.core.postgres_server import PostgresServerError, PrivateServer, remove
from penstock.core.telemetry import Telemetry
from support.cache import TOKEN, join, keep, key, look, ready_at, router_side, running_cache, soon
from support.postgres import crash, fresh_database
from support.tcp import free_port
from support.wait import until

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[PrivateServer]:
    """A server that a test may kill."""
    # A crash of PostgreSQL alone loses nothing that it wrote: the machine stays up.
    server = PrivateServer(tmp_path / "postgres", free_port(), {"fsync": "off"})
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)
        remove(server.folder)


async def start_again(server: PrivateServer) -> None:
    """After a crash: the postmaster's children may hold its shared memory a moment longer."""
    async with asyncio.timeout(20):
        while not server.is_running():
            try:
                await asyncio.to_thread(server.start)
            except PostgresServerError:
                await asyncio.sleep(0.1)


async def test_the_cache_survives_a_crash_of_postgresql_without_a_restart(
    own_server: PrivateServer,
) -> None:
    dsn = await fresh_database(own_server)
    fingerprint = key()
    async with running_cache(dsn) as cache, router_side(cache.server.address) as answers:
        await answers.store(keep(fingerprint))
        lead = await answers.lookup(join(key()), soon())
        assert lead is not None
        await asyncio.to_thread(crash, own_server)
        await ready_at(cache.server.address, want=NOT_SERVING)

        async def is_missed() -> bool:
            return await answers.lookup(look(fingerprint), soon()) is None

        # A backend that is in a statement outlives its postmaster for a moment.
        await until(is_missed)
        async with asyncio.timeout(5):
            await answers.store(keep(key()))
        assert answers.unavailable_count >= 2
        await start_again(own_server)
        await ready_at(cache.server.address)

        async def leads() -> bool:
            found = await answers.lookup(join(key()), soon())
            return found is not None and found.verdict == LookupResponse.VERDICT_LEAD

        # The router's breaker asks again after a second.
        await until(leads)


async def test_waiters_go_on_when_postgresql_comes_back(own_server: PrivateServer) -> None:
    dsn = await fresh_database(own_server)
    fingerprint = key()
    async with (
        running_cache(dsn) as one,
        running_cache(dsn) as two,
        router_side(one.server.address) as leader,
        router_side(two.server.address) as other,
    ):
        lead = await leader.lookup(join(fingerprint), soon())
        assert lead is not None
        waiter = asyncio.create_task(other.lookup(join(fingerprint, wait_ms_max=15_000), soon()))
        await until(lambda: bool(two.upkeep._waits.flights))
        await asyncio.to_thread(crash, own_server)
        await ready_at(two.server.address, want=NOT_SERVING)
        await start_again(own_server)
        async with asyncio.timeout(10):
            taken = await waiter
        # The crash lost the flight: the waiter leads another one.
        assert taken is not None
        assert taken.verdict == LookupResponse.VERDICT_LEAD


async def test_the_cache_waits_for_a_postgresql_that_comes_late(own_server: PrivateServer) -> None:
    dsn = await fresh_database(own_server)
    await asyncio.to_thread(own_server.stop)
    config = Config(dsn=dsn, service_token=TOKEN, listen="127.0.0.1:0")
    cache = await wire(config, Telemetry("cache"))
    stop = asyncio.Event()
    serving = asyncio.create_task(cache.serve(stop))
    try:
        await until(lambda: cache.server.port != 0)
        await ready_at(cache.server.address, want=NOT_SERVING)
        assert cache.health.waiting_for == ["postgres"]
        await start_again(own_server)
        await ready_at(cache.server.address)
        async with router_side(cache.server.address) as answers:
            assert await answers.lookup(look(key()), soon()) is not None
    finally:
        stop.set()
        await serving


async def test_a_schema_of_a_newer_release_ends_the_service_with_the_reason(
    postgres_server: PrivateServer,
) -> None:
    dsn = await fresh_database(postgres_server)
    async with running_cache(dsn):
        pass
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "INSERT INTO schema_migrations (version, name, digest) VALUES (9999, '9999_later', 'x')"
    )
    await connection.close()
    with pytest.raises(MigrationError, match="newer than this program"):
        async with running_cache(dsn):
            pytest.fail("it became ready")


async def test_an_unreachable_cache_is_a_quick_miss_and_counted() -> None:
    async with router_side(f"127.0.0.1:{free_port()}") as answers:
        async with asyncio.timeout(2):
            for _ in range(50):
                assert await answers.lookup(look(key()), soon()) is None
            await answers.store(keep(key()))
        assert answers.unavailable_count == 51
