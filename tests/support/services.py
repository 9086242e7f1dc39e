"""Routers' fronts over the real quota and cache services, and a real PostgreSQL below them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc

from penstock.cache.wiring import Cache
from penstock.core.channel import connect
from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from penstock.router.ledger import QuotaLedger
from support.cache import router_side, running_cache
from support.fronts import FrontHouse
from support.ledger import migrated_database
from support.postgres import fresh_database
from support.quota_process import SERVICE, SERVICE_TOKEN, QuotaProcess, quota_process


class _Quota:
    """A running process in the place of a house's own quota service."""

    def __init__(self, process: QuotaProcess) -> None:
        self._process = process

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def channel(self) -> grpc.aio.Channel:
        return connect(self._process.address)


@dataclass
class Services:
    """Attributes:
    routers: Of each, both fronts.
    caches: Of each router, the process that it asks; they share one database.
    ledger_dsn: Of quota's database.
    """

    quota: QuotaProcess
    routers: list[FrontHouse]
    caches: list[Cache]
    ledger_dsn: str
    cache_dsn: str

    async def reservations(self) -> dict[str, int]:
        """How many there are in each state, from the first on."""
        rows = await fetch(self.ledger_dsn, "SELECT state, count(*) FROM reservations GROUP BY 1")
        return dict(rows)


async def fetch(dsn: str, statement: str, *arguments: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


@asynccontextmanager
async def services(
    server: PrivateServer, folder: Path, *, routers: int = 1
) -> AsyncIterator[Services]:
    """When it is left, nothing is held and the books balance to the nano."""
    ledger_dsn, cache_dsn = await migrated_database(server), await fresh_database(server)
    async with AsyncExitStack() as stack:
        quota = await stack.enter_async_context(quota_process(ledger_dsn, folder))
        caches = [await stack.enter_async_context(running_cache(cache_dsn)) for _ in range(routers)]
        houses = [await _router(stack, quota, cache) for cache in caches]
        yield Services(quota, houses, caches, ledger_dsn, cache_dsn)
    assert [] == await fetch(ledger_dsn, "SELECT FROM reservations WHERE state = 'held'")
    assert (await audit_dsn(ledger_dsn)).ok


async def _router(stack: AsyncExitStack, quota: QuotaProcess, cache: Cache) -> FrontHouse:
    house = FrontHouse()
    channel = await stack.enter_async_context(connect(quota.address))
    ledger = QuotaLedger(channel, SERVICE_TOKEN)
    stack.push_async_callback(ledger.drain, 5)
    answers = await stack.enter_async_context(router_side(cache.server.address))
    house.quota, house.credential = _Quota(quota), SERVICE
    house.ledger, house.answers = ledger, answers
    await house.start()
    stack.push_async_callback(house.stop)
    return house
