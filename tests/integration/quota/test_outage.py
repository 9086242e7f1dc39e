"""PostgreSQL away, killed, back: fail closed, nothing acknowledged is lost (LEDGER, I7, I15)."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2

from penstock.core.ids import uuid7
from penstock.core.postgres_server import PrivateServer, remove
from penstock.core.status import from_rpc_error
from penstock.quota.audit import audit_dsn
from penstock.quota.batcher import BATCHES_MAX
from penstock.quota.v1 import admin_pb2, quota_pb2
from support.ledger import migrated_database
from support.postgres import crash, fresh_database
from support.quota_process import (
    ADMIN,
    SERVICE,
    QuotaProcess,
    quota_process,
    reserve_request,
    reserved,
)
from support.tcp import free_port
from support.wait import until

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PrivateServer]:
    server = PrivateServer(tmp_path / "own", free_port())
    server.start()
    yield server
    server.stop()
    remove(server.folder)


def logged(folder: Path) -> str:
    (log,) = folder.glob("quota-*.log")
    return log.read_text()


async def test_a_killed_database_is_told_and_found_again_without_a_restart(
    own_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(own_server)
    async with quota_process(dsn, tmp_path) as quota:
        key_id = (await quota.new_key(1000)).key.id
        acknowledged = reserve_request(uuid7(), key_id, 100)
        assert await reserved(quota, acknowledged) == "ok"

        crash(own_server)

        request = reserve_request(uuid7(), key_id, 100)
        assert await reserved(quota, request) == "UNAVAILABLE LEDGER_UNAVAILABLE"
        await quota.wait_health(NOT_SERVING)
        own_server.start()
        await quota.wait_health(SERVING)

        assert await reserved(quota, request) == "ok"
        assert await quota.balances(key_id) == (0, 200, 0)
        settled = await quota.quota.Settle(
            quota_pb2.SettleRequest(
                reservation_id=acknowledged.reservation_id,
                amount_nano_usd=60,
                outcome="ok",
                key_id=key_id,
            ),
            metadata=SERVICE,
        )
        assert (60, 40) == (settled.posted_nano_usd, settled.released_nano_usd)
    assert (await audit_dsn(dsn)).ok


async def test_what_was_acknowledged_outlives_a_kill_in_full_flight(
    own_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(own_server)
    async with quota_process(dsn, tmp_path) as quota:
        key_id = (await quota.new_key(10**9)).key.id
        acknowledged: list[str] = []
        enough = asyncio.Event()

        async def work() -> None:
            while True:
                request = reserve_request(uuid7(), key_id, 1)
                if await reserved(quota, request) != "ok":
                    return
                acknowledged.append(request.reservation_id)
                if len(acknowledged) >= 200:
                    enough.set()

        workers = [asyncio.create_task(work()) for _ in range(16)]
        await asyncio.wait_for(enough.wait(), 30)
        crash(own_server)
        await asyncio.gather(*workers)
        own_server.start()
        await quota.wait_health(SERVING)

        for id_ in acknowledged:
            await quota.quota.Void(
                quota_pb2.VoidRequest(reservation_id=id_, reason="TEST", key_id=key_id),
                metadata=SERVICE,
            )
        posted, held, suspense = await quota.balances(key_id)
        # At most what was in flight was applied without an answer.
        assert (posted, suspense) == (0, 0)
        assert held <= 16
    assert (await audit_dsn(dsn)).ok


async def test_a_database_that_comes_after_the_service_is_found(
    own_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await fresh_database(own_server)
    own_server.stop()
    async with quota_process(dsn, tmp_path, ready=False) as quota:
        await quota.wait_health(NOT_SERVING)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await quota.quota.GetPrincipal(
                quota_pb2.GetPrincipalRequest(key_hash=bytes(32)), metadata=SERVICE
            )
        # Away is not unknown: never a 401 for a key that may well be good.
        assert from_rpc_error(raised.value).reason == "LEDGER_UNAVAILABLE"

        own_server.start()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await _accounts(quota)
        told = from_rpc_error(raised.value)
        assert told.reason == "LEDGER_UNAVAILABLE"
        assert "penstock quota migrate" in told.message
        assert await quota.health() == NOT_SERVING

        await _migrate(dsn)
        await quota.wait_health(SERVING)
        await _accounts(quota)


async def test_a_slip_in_the_schema_is_logged_and_its_repair_found(
    own_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(own_server)
    connection = await asyncpg.connect(dsn)
    await connection.execute("ALTER TABLE epochs RENAME COLUMN closed_at TO slip")
    async with quota_process(dsn, tmp_path, ready=False) as quota:
        await until(lambda: "the ledger's database cannot be used" in logged(tmp_path))
        assert await quota.health() == NOT_SERVING
        await connection.execute("ALTER TABLE epochs RENAME COLUMN slip TO closed_at")
        await connection.close()
        await quota.wait_health(SERVING)


async def test_a_ready_process_has_its_connections(
    own_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(own_server)
    async with quota_process(dsn, tmp_path):
        connection = await asyncpg.connect(dsn)
        count = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'penstock-quota' AND query LIKE '%apply_batch%'"
        )
        await connection.close()
    # Some may have been asked something else since: whether the database is there, what to sweep.
    assert count >= BATCHES_MAX - 2


async def test_a_watcher_hears_of_an_outage_and_does_not_take_silence_for_no_change(
    own_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(own_server)
    async with quota_process(dsn, tmp_path) as quota:
        watch = quota.quota.WatchKeys(quota_pb2.WatchKeysRequest(), metadata=SERVICE)
        assert not (await watch.read()).changed_key_hashes

        crash(own_server)

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await asyncio.wait_for(_read_for_ever(watch), 5)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def _read_for_ever(call) -> None:
    while True:
        await call.read()


async def _accounts(quota: QuotaProcess) -> None:
    await quota.admin.ListAccounts(admin_pb2.ListAccountsRequest(), metadata=ADMIN)


async def _migrate(dsn: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.quota", "migrate",
        env={**os.environ, "PENSTOCK_QUOTA_DSN": dsn},
    )  # fmt: skip
    assert await process.wait() == 0
