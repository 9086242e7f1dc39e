"""PostgreSQL read-only, frozen, without connections, locked by an administrator: fail closed with
the right reason, recover without a restart, apply nothing twice (LEDGER, I15).
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest
from grpc_health.v1 import health_pb2

from penstock.core.ids import uuid7
from penstock.core.postgres_server import PrivateServer, remove
from penstock.quota.audit import audit_dsn
from penstock.quota.v1 import quota_pb2
from support.ledger import migrated_database
from support.postgres import crash
from support.quota_process import (
    SERVICE,
    QuotaProcess,
    new_name,
    one_nano,
    quota_process,
    reason_of,
    reserve_request,
    reserved,
)
from support.tcp import free_port

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
MAX_CONNECTIONS = 30


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    folder = tmp_path_factory.mktemp("own")
    server = PrivateServer(folder, free_port(), {"max_connections": str(MAX_CONNECTIONS)})
    server.start()
    yield server
    server.stop()
    remove(folder)


@pytest.fixture
async def dsn(own_server: PrivateServer) -> str:
    return await migrated_database(own_server)


async def as_superuser(server: PrivateServer, *statements: str) -> None:
    connection = await asyncpg.connect(server.dsn())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextmanager
def frozen(server: PrivateServer) -> Iterator[None]:
    """PostgreSQL as behind a disk that does not answer: every process of it stands still."""
    pid = server.pid
    assert pid is not None
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    victims = [pid, *map(int, children)]
    for victim in victims:
        os.kill(victim, signal.SIGSTOP)
    try:
        yield
    finally:
        for victim in victims:
            os.kill(victim, signal.SIGCONT)


@asynccontextmanager
async def all_connections_taken(server: PrivateServer, dsn: str) -> AsyncIterator[None]:
    """By others, who are first in the queue: what quota had is ended and cannot come back."""
    taken: list[asyncpg.Connection] = []
    superuser = await asyncpg.connect(server.dsn())
    try:
        while True:
            try:
                taken.append(await asyncpg.connect(dsn, server_settings={"application_name": "x"}))
            except asyncpg.TooManyConnectionsError:
                ended = await superuser.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name LIKE 'penstock-quota%'"
                )
                if not ended:
                    break
        yield
    finally:
        for connection in (*taken, superuser):
            await connection.close()


async def test_a_read_only_database_is_an_outage_and_ends_without_a_restart(
    own_server: PrivateServer, dsn: str, tmp_path: Path
) -> None:
    read_only = "ALTER SYSTEM SET default_transaction_read_only = on"
    async with quota_process(dsn, tmp_path) as quota:
        key_id = (await quota.new_key(1000)).key.id
        request = reserve_request(uuid7(), key_id, 100)
        try:
            await as_superuser(own_server, read_only, "SELECT pg_reload_conf()")
            # A backend reads its settings anew between two statements: the next or the one after.
            while (told := await reserved(quota, one_nano(key_id))) == "ok":
                pass
            assert told == "UNAVAILABLE LEDGER_UNAVAILABLE"
            assert await reserved(quota, request) == "UNAVAILABLE LEDGER_UNAVAILABLE"
        finally:
            await as_superuser(
                own_server,
                "SET default_transaction_read_only = off",
                "ALTER SYSTEM RESET default_transaction_read_only",
                "SELECT pg_reload_conf()",
            )

        while (told := await reserved(quota, request)) != "ok":
            assert told == "UNAVAILABLE LEDGER_UNAVAILABLE"
        assert await reserved(quota, request) == "ok"
        _, held, _ = await quota.balances(key_id)
        # Once, and the nano-USD of before.
        assert 100 <= held < 200
    assert (await audit_dsn(dsn)).ok


async def test_a_frozen_database_fails_closed_and_what_was_asked_meanwhile_is_held_once(
    own_server: PrivateServer, dsn: str, tmp_path: Path
) -> None:
    async with quota_process(dsn, tmp_path) as quota:
        key_id = (await quota.new_key(1000)).key.id
        assert await reserved(quota, one_nano(key_id)) == "ok"
        request = reserve_request(uuid7(), key_id, 100)
        with frozen(own_server):
            told = await reason_of(quota.quota.Reserve(request, metadata=SERVICE, timeout=1))
            assert told.startswith("DEADLINE_EXCEEDED")
            await quota.wait_health(NOT_SERVING)

        await quota.wait_health(SERVING)
        assert await reserved(quota, request) == "ok"
        assert await quota.balances(key_id) == (0, 101, 0)
    assert (await audit_dsn(dsn)).ok


async def test_a_database_without_free_connections_fails_closed_and_recovers(
    own_server: PrivateServer, dsn: str, tmp_path: Path
) -> None:
    async with quota_process(dsn, tmp_path) as quota:
        key_id = (await quota.new_key(1000)).key.id
        request = reserve_request(uuid7(), key_id, 100)
        async with all_connections_taken(own_server, dsn):
            assert await reserved(quota, request) == "UNAVAILABLE LEDGER_UNAVAILABLE"
            await quota.wait_health(NOT_SERVING)

        await quota.wait_health(SERVING)
        assert await reserved(quota, request) == "ok"
        assert await quota.balances(key_id) == (0, 100, 0)
    assert (await audit_dsn(dsn)).ok


async def test_several_processes_fail_closed_and_come_back_and_share_what_was_applied(
    own_server: PrivateServer, dsn: str, tmp_path: Path
) -> None:
    async with quota_process(dsn, tmp_path) as one, quota_process(dsn, tmp_path) as other:
        key_id = (await one.new_key(1000)).key.id
        before = reserve_request(uuid7(), key_id, 10)
        assert await reserved(one, before) == "ok"

        crash(own_server)
        requests = [reserve_request(uuid7(), key_id, 10) for _ in range(2)]
        for quota, request in zip((one, other), requests, strict=True):
            assert await reserved(quota, request) == "UNAVAILABLE LEDGER_UNAVAILABLE"
        own_server.start()
        await asyncio.gather(one.wait_health(SERVING), other.wait_health(SERVING))

        # Each asks the other process, and then both: once it is held.
        for quota in (other, one):
            for request in (before, *requests):
                assert await reserved(quota, request) == "ok"
        assert await one.balances(key_id) == await other.balances(key_id) == (0, 30, 0)
    assert (await audit_dsn(dsn)).ok


async def test_a_long_lock_stalls_its_own_organisation_alone(dsn: str, tmp_path: Path) -> None:
    async with quota_process(dsn, tmp_path) as quota:
        locked, other = [(await quota.new_key(1000, name=new_name())).key.id for _ in range(2)]
        stream = Stream(quota)
        for key_id in (locked, other):
            assert await stream.ask(one_nano(key_id)) == "ok"
        administrator = await asyncpg.connect(dsn)
        transaction = administrator.transaction()
        await transaction.start()
        await administrator.execute(
            "SELECT 1 FROM buckets b JOIN budgets x ON x.id = b.budget_id"
            " WHERE x.account_id = $1 FOR UPDATE OF b",
            int(locked.removeprefix("key_")),
        )

        stuck = one_nano(locked)
        first = asyncio.create_task(stream.ask(stuck))
        await asyncio.sleep(0)  # it is written first
        # In one batch with the locked one, or right behind it: it waits for one lock time-out.
        assert await stream.ask(one_nano(other)) == "ok"
        assert await first == "LEDGER_BUSY"
        # Since then the locked organisation is apart: nothing waits behind it any more.
        again = asyncio.create_task(stream.ask(stuck))
        for _ in range(5):
            assert await stream.ask(one_nano(other)) == "ok"
        assert not again.done()
        assert await again == "LEDGER_BUSY"

        await transaction.rollback()
        await administrator.close()
        assert await stream.ask(stuck) == "ok"
        assert await stream.ask(stuck) == "ok"
        assert await quota.balances(locked) == (0, 2, 0)
        assert await quota.balances(other) == (0, 7, 0)
        await stream.end()
    assert (await audit_dsn(dsn)).ok


class Stream:
    """One Batch stream; each operation is written at once."""

    def __init__(self, quota: QuotaProcess) -> None:
        self._call = quota.quota.Batch(metadata=SERVICE)
        self._told: dict[int, asyncio.Future[str]] = {}
        self._writing = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())

    async def ask(self, request: quota_pb2.ReserveRequest) -> str:
        number = len(self._told) + 1
        self._told[number] = asyncio.get_running_loop().create_future()
        operation = quota_pb2.Operation(operation_id=number, reserve=request)
        async with self._writing:
            await self._call.write(quota_pb2.BatchRequest(operations=[operation]))
        return await asyncio.wait_for(self._told[number], 30)

    async def end(self) -> None:
        await self._call.done_writing()
        await self._reader

    async def _read(self) -> None:
        async for response in self._call:
            for result in response.results:
                told = result.error.reason if result.HasField("error") else "ok"
                self._told[result.operation_id].set_result(told)
