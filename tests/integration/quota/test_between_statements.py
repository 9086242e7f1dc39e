"""What is committed between two statements of `apply_batch`: each batch decides on one look, and on
what was acknowledged before it had its locks.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from penstock.core.postgres_server import PrivateServer
from proofs.between import Choose, at_every_gap
from proofs.between_acts import Act, Place, a_batch, close_of, end_of
from support.ledger import BY_TEST, Ledger, extend, reserve, settle, told, void
from support.wait import until


def _settled(place: Place) -> tuple[Act, Act]:
    reserve_ = place.paid("new", place.key, 25)
    return a_batch(place, settle(place.id("new"), 20)), a_batch(place, reserve_)


def _voided(place: Place) -> tuple[Act, Act]:
    reserve_ = place.paid("new", place.key, 25)
    return a_batch(place, void(place.id("new"))), a_batch(place, reserve_)


def _closed(place: Place) -> tuple[Act, Act]:
    """The only budget of money that the stranger has."""
    (budget,) = (b for b in place.world.budgets if b.account_id == place.strange_org)
    return a_batch(place, place.paid("theirs", place.stranger, 50)), close_of(place, budget)


def _ended(place: Place) -> tuple[Act, Act]:
    """A grant that an abandoned hold of the team has a part of."""
    return a_batch(place, place.local("third", place.teammate, 35)), end_of(place.world.grants[1])


@pytest.mark.parametrize("choose", [_settled, _voided, _closed, _ended])
async def test_what_commits_at_any_gap_of_a_batch_comes_wholly_before_it_or_wholly_after(
    postgres_server: PrivateServer, choose: Choose
) -> None:
    assert [] == await at_every_gap(postgres_server, choose)


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


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("limit", "BUDGET_EXCEEDED"),
        ("revoked", "KEY_REVOKED"),
        ("suspended", "ACCOUNT_SUSPENDED"),
        ("new budget", "BUDGET_EXCEEDED"),
        ("grant's end", "CREDIT_EXHAUSTED"),
        ("key's end", "KEY_EXPIRED"),
    ],
)
async def test_what_was_acknowledged_while_a_batch_waited_for_its_locks_holds_for_it(
    ledger: Ledger, what: str, reason: str
) -> None:
    org_id, _, key_id = await ledger.new_path(prepaid=what == "grant's end")
    budget_id = await ledger.budget("key", key_id, 100, name="b")
    if what == "grant's end":
        await ledger.grant("org", org_id, 100, ends_in=timedelta(milliseconds=400))
    if what == "key's end":
        soon = ledger.now + timedelta(seconds=20)
        await ledger.accounts.update_key(BY_TEST, key_id, name=None, expires_at=soon)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"

    async with locked(ledger, budget_id):
        waiting = asyncio.create_task(ledger.one(reserve(ledger.id(), key_id, 50)))
        await until(ledger.is_blocked)
        if what == "limit":
            await ledger.budget("key", key_id, 10, name="b")
        elif what == "revoked":
            await ledger.accounts.revoke_key(BY_TEST, key_id)
        elif what == "suspended":
            await ledger.accounts.update_account(BY_TEST, "org", org_id, suspended=True)
        elif what == "new budget":
            await ledger.budget("org", org_id, 0, name="stop")
        elif what == "grant's end":
            await ledger.advance(timedelta(milliseconds=600))
        else:
            await ledger.advance(timedelta(seconds=30))

    assert reason == told(await waiting)


async def test_a_hold_that_ran_out_while_a_batch_waited_gives_its_room(ledger: Ledger) -> None:
    _, team_id, waits = await ledger.new_path()
    gone = await ledger.another_key(team_id)
    await ledger.budget("team", team_id, 100)
    locked_id = await ledger.budget("key", waits, 100, name="b")
    assert told(await ledger.one(reserve(ledger.id(), waits, 0))) == "ok"
    hold = reserve(ledger.id(), gone, 80, pool="local", ttl_ms=20_000)
    assert told(await ledger.one(hold)) == "ok"

    async with locked(ledger, locked_id):
        waiting = asyncio.create_task(ledger.one(reserve(ledger.id(), waits, 50)))
        await until(ledger.is_blocked)
        await ledger.advance(timedelta(seconds=30))

    assert told(await waiting) == "ok"


async def test_a_lowered_limit_is_not_overspent_by_one_who_waited_and_one_who_came_after(
    ledger: Ledger,
) -> None:
    org_id, team_id, waits = await ledger.new_path()
    comes = await ledger.another_key(team_id)
    locked_id = await ledger.budget("key", waits, 100, name="b")
    await ledger.budget("org", org_id, 100, name="all")
    for key_id in (waits, comes):
        assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"

    async with locked(ledger, locked_id):
        waiting = asyncio.create_task(ledger.one(reserve(ledger.id(), waits, 50)))
        await until(ledger.is_blocked)
        await ledger.budget("org", org_id, 12, name="all")
        assert told(await ledger.one(reserve(ledger.id(), comes, 10))) == "ok"

    assert told(await waiting) == "BUDGET_EXCEEDED"


async def test_credit_that_was_given_while_a_batch_waited_is_found(ledger: Ledger) -> None:
    org_id, _, key_id = await ledger.new_path(prepaid=True)
    locked_id = await ledger.budget("key", key_id, 100, name="b")
    assert told(await ledger.one(reserve(ledger.id(), key_id, 0))) == "ok"

    async with locked(ledger, locked_id):
        waiting = asyncio.create_task(ledger.one(reserve(ledger.id(), key_id, 50)))
        await until(ledger.is_blocked)
        await ledger.grant("org", org_id, 100)

    assert told(await waiting) == "ok"


async def test_a_provider_that_joined_a_pool_while_a_batch_waited_is_limited_by_it(
    ledger: Ledger,
) -> None:
    _, _, key_id = await ledger.new_path()
    locked_id = await ledger.budget("key", key_id, 100, name="b")
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"

    async with locked(ledger, locked_id):
        late = reserve(ledger.id(), key_id, 50, provider="late")
        waiting = asyncio.create_task(ledger.one(late))
        await until(ledger.is_blocked)
        pool = await ledger.pools.set_pool(BY_TEST, "late", ["late"], prepaid=False)
        await ledger.budget("pool", pool.id, 10)

    assert told(await waiting) == "BUDGET_EXCEEDED"


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
        await until(ledger.is_blocked)
        await ledger.budget("key", key_id, None, name="b")

    assert ["ok", "ok"] == [told(outcome) for outcome in await waiting]
    assert ["ok", "ok"] == [told(outcome) for outcome in await ledger.apply(*batch)]


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
        # An unknown key beside it has no organisation.
        said = await ledger.apply(
            *(reserve(ledger.id(), key_id, 10, provider=provider) for key_id in (other, 2**40))
        )

    assert ["ok", "KEY_UNKNOWN"] == [told(outcome) for outcome in said]


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
