"""What is measured: a private PostgreSQL as `penstock up` runs it, and real quota processes."""

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.load.fill_ledger import Filled, fill
from tests.support.postgres import fresh_database

from penstock.core import postgres
from penstock.core.channel import connect
from penstock.core.ports import free_ports
from penstock.core.postgres_server import PrivateServer
from penstock.quota.budget import BudgetWish
from penstock.quota.store.budget_store import BudgetStore
from penstock.quota.store.changes import Change
from penstock.quota.store.database import MIGRATIONS, Database
from penstock.quota.store.pool_store import PoolStore

READY_SECONDS = 30.0
STOP_SECONDS = 30.0
ORGS = 16
KEYS_PER_ORG = 10
POOL_PROVIDER = "pooled"
_LIMIT = 10**15
_BY_BENCH = Change(actor="bench-ledger", reason="a benchmark")


@dataclass(frozen=True, slots=True)
class QuotaProcesses:
    """Running ones."""

    addresses: Sequence[str]
    token: str
    processes: Sequence["subprocess.Popen[bytes]"]

    def cpu_seconds(self) -> float:
        return sum(_cpu_seconds(process.pid) for process in self.processes)


def postgres_cpu_seconds(server: PrivateServer) -> float:
    """Of the postmaster and all its children that live."""
    assert server.pid is not None
    children = psutil.Process(server.pid).children(recursive=True)
    return _cpu_seconds(server.pid) + sum(_cpu_seconds(child.pid) for child in children)


async def checkpoint(server: PrivateServer) -> None:
    """Before each measurement, so that all find the same: a ledger that has run for minutes writes
    over old segments of its log. A new cluster makes each anew, and all commits wait meanwhile.
    """
    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def new_ledger(server: PrivateServer) -> str:
    """DSN of a migrated database without accounts."""
    dsn = await fresh_database(server)
    await postgres.migrate(dsn, MIGRATIONS)
    return dsn


async def add_accounts(dsn: str) -> list[int]:
    """A few organisations with a few keys each, mixed; each level of a path has a budget."""
    filled = [await fill(dsn, accounts=KEYS_PER_ORG, entries=0) for _ in range(ORGS)]
    return [one.first_key_id + n for n in range(KEYS_PER_ORG) for one in filled]


def some_keys(filled: Filled) -> list[int]:
    """As many keys as `add_accounts` makes, spread over all that were filled in."""
    count = ORGS * KEYS_PER_ORG
    return [filled.first_key_id + n * filled.keys // count for n in range(count)]


async def add_pool(dsn: str) -> None:
    """The provider `pooled`, one account with a budget and a limit in requests a minute."""
    database = await Database.open(dsn)
    try:
        pool = await PoolStore(database).set_pool(_BY_BENCH, "pool", [POOL_PROVIDER], prepaid=False)
        budgets = BudgetStore(database)
        for unit, window in (("nano_usd", "month"), ("requests", "minute")):
            wish = BudgetWish(
                account_kind="pool",
                account_id=pool.id,
                unit=unit,  # type: ignore[arg-type]
                window=window,  # type: ignore[arg-type]
                name=f"{unit} a {window}",
                time_zone="UTC",
                limit=_LIMIT,
                scope=None,
                soft_percents=(),
            )
            await budgets.set_budget(_BY_BENCH, wish)
    finally:
        await database.close()


@asynccontextmanager
async def quota_processes(dsn: str, count: int, folder: Path) -> AsyncIterator[QuotaProcesses]:
    """Healthy ones, ended by SIGTERM."""
    ports = free_ports(2 * count)
    token, admin_token = secrets.token_hex(16), secrets.token_hex(16)
    addresses, started = [], []
    try:
        for port, admin_port in zip(ports[::2], ports[1::2], strict=True):
            address = f"127.0.0.1:{port}"
            environment = os.environ | {
                "PENSTOCK_QUOTA_DSN": dsn,
                "PENSTOCK_SERVICE_TOKEN": token,
                "PENSTOCK_ADMIN_TOKEN": admin_token,
                "PENSTOCK_QUOTA_LISTEN": address,
                "PENSTOCK_QUOTA_ADMIN_LISTEN": f"127.0.0.1:{admin_port}",
            }
            environment.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
            with (folder / f"quota-{port}.log").open("wb") as log:
                started.append(
                    subprocess.Popen(  # noqa: ASYNC220 - a command of our own, and it is short
                        [sys.executable, "-m", "penstock.quota"],
                        env=environment,
                        stdout=log,
                        stderr=log,
                    )
                )
            addresses.append(address)
        await asyncio.gather(*(_healthy(address) for address in addresses))
        yield QuotaProcesses(addresses, token, started)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            await asyncio.to_thread(process.wait, STOP_SECONDS)


async def _healthy(address: str) -> None:
    async with connect(address) as channel, asyncio.timeout(READY_SECONDS):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        async for answer in watch:
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:  # a child that ended meanwhile
        return 0.0
    return times.user + times.system
