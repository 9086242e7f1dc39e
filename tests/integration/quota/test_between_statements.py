"""What is committed between two statements of `apply_batch`: each batch decides on one look, and on
what was acknowledged before it had its locks.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from penstock.core.ids import uuid7
from penstock.core.postgres_server import PrivateServer
from penstock.quota.ledger import Operation
from penstock.quota.store.database import MIGRATIONS
from penstock.quota.store.ledger_store import Timed, apply_on
from support.ledger import (
    BY_TEST,
    Ledger,
    extend,
    migrated_database,
    reserve,
    settle,
    told,
    void,
)

PAUSE = "    IF current_setting('test.slow', true) = '1' THEN PERFORM pg_sleep(1); END IF;\n"
LOOKED = "    moment_ms := (extract(epoch FROM moment) * 1000)::bigint;\n"
MOVED = "    SELECT array_agg(CASE\n            WHEN o.op = 'reserve' THEN CASE"
STARTED_SECONDS = 0.4
"""After this a slowed batch lies in its pause, and one that a lock stops waits for it."""


@pytest.fixture
async def two(postgres_server: PrivateServer) -> AsyncIterator[tuple[Ledger, Ledger]]:
    """Two quota processes' stores over one database of their own, on the real clock."""
    dsn = await migrated_database(postgres_server)
    one, other = await Ledger.open(dsn), await Ledger.open(dsn)
    yield one, other
    report = await one.audit()
    await one.database.close()
    await other.database.close()
    assert report.ok, [check for check in report.checks if check.findings]


async def pause_before(ledger: Ledger, statement: str) -> None:
    """Batches of connections that ask for it sleep a second there."""
    (source,) = [m.sql for m in MIGRATIONS if m.name.endswith("apply_batch")]
    first = source.index("CREATE FUNCTION apply_batch")
    body = source[first : source.index("-- What an ended grant has left")]
    assert body.count(statement) == 1
    body = body.replace(statement, PAUSE + statement)
    await ledger.execute(body.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1))


async def slowly(ledger: Ledger, operation: Operation) -> str:
    """What is told of it; as the store does, from the start where its id was taken meanwhile."""
    try:
        async with ledger.database.connection() as connection, connection.transaction():
            await connection.execute("SET LOCAL test.slow = '1'")
            return told((await apply_on(connection, [Timed(operation)]))[0])
    except asyncpg.UniqueViolationError:
        return told(await ledger.one(operation))


@pytest.mark.parametrize("gap", [LOOKED, MOVED], ids=["looked", "moved"])
@pytest.mark.parametrize("resolve", ["settle", "void"])
async def test_a_reserve_that_commits_in_the_midst_of_its_own_resolution_loses_no_money(
    two: tuple[Ledger, Ledger], gap: str, resolve: str
) -> None:
    one, other = two
    key_id = await one.new_key(100)
    await one.budget("key", key_id, 5, unit="in_flight", name="f")
    await one.one(reserve(uuid7(), key_id, 1))
    await pause_before(one, gap)
    id_ = uuid7()
    operation = settle(id_, 40) if resolve == "settle" else void(id_)

    late = asyncio.create_task(slowly(other, operation))
    await asyncio.sleep(STARTED_SECONDS)
    assert told(await one.one(reserve(id_, key_id, 40))) == "ok"
    said = await late

    (row,) = await one.fetch("SELECT state::text FROM reservations WHERE id = $1", id_)
    assert (said, row["state"]) in {("RESERVATION_UNKNOWN", "held"), ("ok", "voided")}


@asynccontextmanager
async def locked(ledger: Ledger, budget_id: int) -> AsyncIterator[None]:
    """An administrator has the buckets of a budget locked."""
    connection = await asyncpg.connect(ledger.dsn)
    transaction = connection.transaction()
    await transaction.start()
    query = "SELECT 1 FROM buckets WHERE budget_id = $1 FOR UPDATE"
    await connection.execute(query, budget_id)
    try:
        yield
    finally:
        await transaction.rollback()
        await connection.close()


@pytest.mark.parametrize("what", ["limit", "revoked", "suspended", "new budget", "grant's end"])
async def test_what_was_acknowledged_while_a_batch_waited_for_its_locks_holds_for_it(
    ledger: Ledger, what: str
) -> None:
    org_id, _, key_id = await ledger.new_path(prepaid=what == "grant's end")
    budget_id = await ledger.budget("key", key_id, 100, name="b")
    if what == "grant's end":
        await ledger.grant("org", org_id, 100, ends_in=timedelta(seconds=20))
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"

    async with locked(ledger, budget_id):
        waiting = asyncio.create_task(ledger.one(reserve(ledger.id(), key_id, 50)))
        await asyncio.sleep(STARTED_SECONDS)
        if what == "limit":
            await ledger.budget("key", key_id, 10, name="b")
        elif what == "revoked":
            query = "UPDATE api_keys SET revoked_at = ledger_now() WHERE account_id = $1"
            await ledger.execute(query, key_id)
        elif what == "suspended":
            await ledger.execute("UPDATE accounts SET suspended = true WHERE id = $1", org_id)
        elif what == "new budget":
            await ledger.budget("org", org_id, 0, name="stop")
        else:
            await ledger.advance(timedelta(seconds=30))

    assert told(await waiting) != "ok"


async def test_a_refusal_by_a_limit_that_was_lifted_meanwhile_poisons_no_batch(
    ledger: Ledger,
) -> None:
    _, _, key_id = await ledger.new_path()
    budget_id = await ledger.budget("key", key_id, 100, name="b")
    other = await ledger.new_key(100)
    await ledger.one(reserve(ledger.id(), key_id, 90))
    batch = (reserve(ledger.id(), key_id, 50), reserve(ledger.id(), other, 10))

    async with locked(ledger, budget_id):
        waiting = asyncio.create_task(ledger.apply(*batch))
        await asyncio.sleep(STARTED_SECONDS)
        await ledger.budget("key", key_id, None, name="b")
    first = [told(outcome) for outcome in await waiting]

    assert first[1] == "ok"
    assert first == [told(outcome) for outcome in await ledger.apply(*batch)]


async def test_an_abandoned_hold_of_a_locked_organisation_denies_the_pool_to_nobody(
    ledger: Ledger,
) -> None:
    pool_id, (provider,) = await ledger.pool()
    await ledger.budget("pool", pool_id, 1000, "minute", unit="requests")
    _, _, gone = await ledger.new_path()
    budget_id = await ledger.budget("key", gone, 100, name="b")
    other = await ledger.new_key(100)
    await ledger.one(reserve(ledger.id(), gone, 10, provider=provider))
    await ledger.advance(timedelta(minutes=2))  # its router has died

    async with locked(ledger, budget_id):
        said = await ledger.one(reserve(ledger.id(), other, 10, provider=provider))

    assert told(said) == "ok"


async def test_a_closed_budget_ends_no_stream(ledger: Ledger) -> None:
    _, _, key_id = await ledger.new_path()
    await ledger.budget("key", key_id, None, name="big")
    small = await ledger.budget("key", key_id, 50, name="small")
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, key_id, 40))) == "ok"

    await ledger.budgets.close_budget(BY_TEST, small, money=True)

    assert told(await ledger.one(extend(id_, 80))) == "ok"


async def test_a_sweep_goes_on_past_an_organisation_whose_rows_are_locked(ledger: Ledger) -> None:
    _, _, stuck = await ledger.new_path()
    budget_id = await ledger.budget("key", stuck, 100, name="b")
    free = await ledger.new_key(100)
    ids = [ledger.id(), ledger.id()]
    await ledger.apply(*(reserve(i, k, 10) for i, k in zip(ids, (stuck, free), strict=True)))
    await ledger.advance(timedelta(minutes=2))

    async with locked(ledger, budget_id):
        await ledger.store.sweep()

    rows = await ledger.fetch("SELECT id, state::text FROM reservations WHERE id = ANY($1)", ids)
    assert {ids[0]: "held", ids[1]: "expired"} == {str(row["id"]): row["state"] for row in rows}
