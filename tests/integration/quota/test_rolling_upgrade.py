"""Two schema versions live at once: the release before, and this one, over one database.

This program plays both: it is the new one over a schema that lacks its newest migration, and the
old one over a schema that has one more.
"""

import asyncio
import os
import sys
from pathlib import Path

from grpc_health.v1 import health_pb2

from penstock.core import postgres
from penstock.core.ids import uuid7
from penstock.core.postgres import Migration
from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from penstock.quota.store.database import MIGRATIONS
from penstock.quota.v1 import quota_pb2
from support.ledger import migrated_database
from support.postgres import fresh_database
from support.quota_process import SERVICE, QuotaProcess, quota_process, reserve_request
from support.wait import until

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING

NEXT_SQL = """
    ALTER TABLE reservations ADD COLUMN of_the_next_release text;
    ALTER TABLE entries ADD COLUMN of_the_next_release text;
    ALTER TABLE buckets ADD COLUMN of_the_next_release bigint NOT NULL DEFAULT 0;
    ALTER TABLE accounts ADD COLUMN of_the_next_release boolean NOT NULL DEFAULT false;
    ALTER TYPE entry_operation ADD VALUE 'of_the_next_release';
    CREATE TABLE of_the_next_release (id bigint PRIMARY KEY);
"""


def next_release() -> list[Migration]:
    version = len(MIGRATIONS) + 1
    return [*MIGRATIONS, Migration(version, f"{version:04d}_next", NEXT_SQL)]


async def pairs_until(stop: asyncio.Event, quota: QuotaProcess, key_id: str) -> int:
    """Reserves and settles a nano-USD at a time; how often. None may fail."""
    count = 0
    while not stop.is_set():
        id_ = uuid7()
        await quota.quota.Reserve(reserve_request(id_, key_id, 2), metadata=SERVICE)
        await quota.quota.Settle(
            quota_pb2.SettleRequest(
                reservation_id=id_, amount_nano_usd=1, outcome="ok", key_id=key_id
            ),
            metadata=SERVICE,
        )
        count += 1
    return count


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("quota-*.log"))


async def test_a_new_process_is_not_ready_before_its_schema(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await fresh_database(postgres_server)
    await postgres.migrate(dsn, MIGRATIONS[:-1])
    async with quota_process(dsn, tmp_path, ready=False) as quota:
        await quota.wait_health(NOT_SERVING)
        # It has looked at the database, and still is not.
        await until(lambda: "not ready" in log_of(tmp_path))
        assert await quota.health() == NOT_SERVING

        await postgres.migrate(dsn, MIGRATIONS)

        await quota.wait_health(SERVING)


async def test_old_processes_serve_on_while_and_after_the_schema_moves(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(postgres_server)
    async with quota_process(dsn, tmp_path) as old:
        key_id = (await old.new_key(10**9)).key.id
        stop = asyncio.Event()
        working = [asyncio.create_task(pairs_until(stop, old, key_id)) for _ in range(4)]

        await postgres.migrate(dsn, next_release())

        # One that starts only now, as after a roll-back, serves beside it.
        async with quota_process(dsn, tmp_path) as rolled_back:
            working += [asyncio.create_task(pairs_until(stop, rolled_back, key_id))]
            held = uuid7()
            await old.quota.Reserve(reserve_request(held, key_id, 7), metadata=SERVICE)
            await rolled_back.quota.Void(
                quota_pb2.VoidRequest(reservation_id=held, reason="TEST", key_id=key_id),
                metadata=SERVICE,
            )
            stop.set()
            counts = await asyncio.gather(*working)
            assert await old.health() == await rolled_back.health() == SERVING
        assert await old.balances(key_id) == (sum(counts), 0, 0)
    assert sum(counts) > 0
    assert (await audit_dsn(dsn)).ok


async def test_migrate_of_a_release_that_was_rolled_back_succeeds_and_changes_nothing(
    postgres_server: PrivateServer, tmp_path: Path
) -> None:
    dsn = await migrated_database(postgres_server)
    await postgres.migrate(dsn, next_release())

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.quota", "migrate",
        env={**os.environ, "PENSTOCK_QUOTA_DSN": dsn},
    )  # fmt: skip

    assert await process.wait() == 0
    assert await postgres.migrate(dsn, next_release()) == []
