"""Days whose entries were detached are reconciled as others; days that were pruned are refused."""

from datetime import timedelta

import pytest

from penstock.core import errors
from penstock.quota.audit import detach, prune, seal
from support.ledger import Ledger
from support.reconciliation import World, drifts, reconcile

BEYOND = timedelta(days=11)
"""The horizon of ids, and more than every margin."""


async def a_day(ledger: Ledger) -> World:
    world = World(ledger)
    key_id = await ledger.new_key(None)
    await world.exactly(key_id, 400)
    await world.cancelled(key_id, 250)
    await world.lost(key_id, 700)
    await world.next_day()
    return world


async def put_away(ledger: Ledger) -> None:
    await ledger.store.sweep()
    assert (await seal(ledger.dsn)).ok
    await detach(ledger.dsn, keep=0)


async def test_a_day_whose_entries_were_detached_is_reconciled(ledger: Ledger) -> None:
    day = ledger.now.date()
    world = await a_day(ledger)
    await put_away(ledger)

    report = await reconcile(ledger, world.export(), day, world.today)
    again = await reconcile(ledger, world.export(), day, world.today)

    assert ({}, {}) == (drifts(report), drifts(again))
    assert (1, 1) == (report.suspense_resolved, report.estimates_adjusted)
    assert (0, 0) == (again.suspense_resolved, again.estimates_adjusted)
    assert (1_350, 0) == (await world.standing())[:2]
    assert (await ledger.audit()).ok


async def test_a_day_whose_attempts_were_pruned_is_refused_and_later_ones_are_not(
    ledger: Ledger,
) -> None:
    day = ledger.now.date()
    world = await a_day(ledger)
    await put_away(ledger)
    await ledger.set_clock(ledger.now + BEYOND)
    # The suspected one stays, and says nothing of the others.
    assert 2 == (await prune(ledger.dsn)).reservations
    standing = await world.standing()

    with pytest.raises(errors.FailedPrecondition, match="reconcile from 2026-11-25 on") as refused:
        await reconcile(ledger, world.export(), day, day + timedelta(days=1))

    assert "DAYS_PRUNED" == refused.value.reason
    assert standing == await world.standing()
    later = await reconcile(ledger, [], day + timedelta(days=1), world.today)
    assert {} == drifts(later)
