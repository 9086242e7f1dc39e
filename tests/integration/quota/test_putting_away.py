"""What lies behind a proof is detached, what nobody can ask for is pruned; nothing else ever is."""

from datetime import timedelta

import asyncpg
import pytest

from penstock.quota.audit import Busy, Pruned, audit_dsn, detach, prune, seal, sealing
from penstock.quota.audit.sealing import close_epoch, maintenance
from support.ledger import START, settle, told
from support.small_ledger import SmallLedger

BEYOND = timedelta(days=11)
"""The horizon of ids, and more than every margin."""
TAKEN_OUT = "ALTER TABLE entries DETACH PARTITION entries_1"
RENAMED = "ALTER TABLE entries_1 RENAME TO entries_archive_1"


async def adds_up(small: SmallLedger) -> bool:
    reports = [await audit_dsn(small.ledger.dsn, full=full) for full in (False, True)]
    return [[]] * 2 == [report.findings for report in reports]


async def tables(small: SmallLedger) -> list[str]:
    """With entries, those of the ledger by number, then the archives."""
    rows = await small.ledger.fetch(
        "SELECT c.relname FROM pg_class c WHERE c.relkind = 'r' AND c.relname LIKE 'entries%'"
        " ORDER BY c.relname"
    )
    return [row["relname"] for row in rows]


async def attached(small: SmallLedger) -> list[str]:
    rows = await small.ledger.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'entries'::regclass ORDER BY c.relname"
    )
    return [row["relname"] for row in rows]


async def sealed_epochs(small: SmallLedger, count: int) -> None:
    """A day apart."""
    for _ in range(count):
        await small.spend(3)
        assert (await seal(small.ledger.dsn)).ok
        await small.ledger.advance(timedelta(days=1))


async def test_the_newest_epochs_stay(small: SmallLedger) -> None:
    await sealed_epochs(small, 3)

    assert [1, 2] == await detach(small.ledger.dsn, keep=1)

    assert ["entries_3", "entries_4"] == await attached(small)
    assert ["entries_3", "entries_4", "entries_archive_1", "entries_archive_2"] == (
        await tables(small)
    )
    assert await adds_up(small)
    await small.settle(small.held, 4)
    assert await adds_up(small)
    assert [] == await detach(small.ledger.dsn, keep=1)


async def test_epochs_before_a_date_go(small: SmallLedger) -> None:
    await sealed_epochs(small, 3)

    assert [1] == await detach(small.ledger.dsn, before=START + timedelta(hours=1))
    assert [2] == await detach(small.ledger.dsn, keep=1, before=START + timedelta(days=9))


async def test_what_is_not_sealed_stays(small: SmallLedger) -> None:
    async with maintenance(small.ledger.dsn) as connection:
        assert 1 == await close_epoch(connection)

    assert [] == await detach(small.ledger.dsn, keep=0)
    await small.ledger.execute("UPDATE buckets SET posted = posted + 1 WHERE unit = 'nano_usd'")
    assert not (await seal(small.ledger.dsn)).ok
    assert [] == await detach(small.ledger.dsn, keep=0)
    assert ["entries_1", "entries_2"] == await attached(small)


@pytest.mark.parametrize("which", [{}, {"keep": -1}])
async def test_which_epochs_go_must_be_said(small: SmallLedger, which: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="which epochs"):
        await detach(small.ledger.dsn, **which)


async def test_an_archive_is_append_only(small: SmallLedger) -> None:
    await sealed_epochs(small, 1)
    await detach(small.ledger.dsn, keep=0)

    for change in ("UPDATE entries_archive_1 SET posted = 0", "DELETE FROM entries_archive_1",
                   "TRUNCATE entries_archive_1"):  # fmt: skip
        with pytest.raises(asyncpg.RestrictViolationError):
            await small.ledger.execute(change)


@pytest.mark.parametrize("left", [TAKEN_OUT, f"{TAKEN_OUT}; {RENAMED}"])
async def test_a_detach_that_was_killed_is_ended_by_the_next(small: SmallLedger, left: str) -> None:
    await sealed_epochs(small, 1)
    await small.ledger.execute(left)
    assert await adds_up(small)

    assert [1] == await detach(small.ledger.dsn, keep=0)

    assert ["entries_2", "entries_archive_1"] == await tables(small)
    assert await adds_up(small)


async def test_a_long_reader_delays_a_detach_and_no_batch(
    small: SmallLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sealed_epochs(small, 1)
    monkeypatch.setattr(sealing, "TRIES_MAX", 2)
    reader = await asyncpg.connect(small.ledger.dsn)
    transaction = reader.transaction(isolation="repeatable_read")
    await transaction.start()
    counted = await reader.fetchval("SELECT count(*) FROM entries")

    with pytest.raises(Busy, match="detaching epoch 1"):
        await detach(small.ledger.dsn, keep=0)
    await small.spend(4)
    assert await adds_up(small)
    assert counted == await reader.fetchval("SELECT count(*) FROM entries")
    # A partition that is half-way out is in nobody's way.
    assert (await seal(small.ledger.dsn)).ok
    await transaction.rollback()
    await reader.close()

    assert [1] == await detach(small.ledger.dsn, keep=1)
    assert ["entries_2", "entries_3"] == await attached(small)
    assert await adds_up(small)


async def test_old_reservations_behind_a_detached_epoch_go(small: SmallLedger) -> None:
    await sealed_epochs(small, 1)
    await detach(small.ledger.dsn, keep=0)
    await small.ledger.set_clock(START + BEYOND)

    pruned = await prune(small.ledger.dsn)

    left = {str(row["id"]) for row in await small.ledger.fetch("SELECT id FROM reservations")}
    assert {small.held, small.suspected} == left
    assert 5 == pruned.reservations
    assert await adds_up(small)
    assert Pruned() == await prune(small.ledger.dsn)
    # Both are resolved as if nothing had been put away.
    await small.settle(small.suspected, 1)
    await small.settle(small.held, 1)
    assert await adds_up(small)


async def test_a_pruned_id_is_not_taken_as_new(small: SmallLedger) -> None:
    id_ = await small.spend(1)
    await sealed_epochs(small, 1)
    await detach(small.ledger.dsn, keep=0)
    await small.ledger.set_clock(START + BEYOND)
    await prune(small.ledger.dsn)

    again = await small.ledger.one(settle(id_, 1))

    assert "RESERVATION_UNKNOWN" == told(again)


@pytest.mark.parametrize(
    ("keep", "age"), [(1, BEYOND), (0, timedelta(days=7))], ids=["attached", "young"]
)
async def test_what_is_attached_or_young_stays(
    small: SmallLedger, keep: int, age: timedelta
) -> None:
    await sealed_epochs(small, 1)
    await detach(small.ledger.dsn, keep=keep)
    await small.ledger.set_clock(START + age)

    assert Pruned() == await prune(small.ledger.dsn)


async def test_closed_windows_of_rate_limits_go(small: SmallLedger) -> None:
    """Once nothing that could still be resolved lies in them."""
    await small.settle(small.held, 1)
    await small.settle(small.suspected, 1)
    await sealed_epochs(small, 1)
    await detach(small.ledger.dsn, keep=0)
    await small.ledger.set_clock(START + BEYOND)
    await small.spend(1)

    pruned = await prune(small.ledger.dsn)

    # Of an hour in requests and of a day in tokens; in flight there is one window for ever.
    assert (7, 2) == (pruned.reservations, pruned.windows)
    units = "SELECT unit::text FROM buckets WHERE unit <> 'nano_usd' ORDER BY unit"
    assert ["in_flight", "requests", "tokens"] == [
        row["unit"] for row in await small.ledger.fetch(units)
    ]
    assert await adds_up(small)


async def test_old_checkpoints_go_and_the_one_that_is_built_on_stays(small: SmallLedger) -> None:
    await sealed_epochs(small, 3)
    await detach(small.ledger.dsn, keep=1)

    pruned = await prune(small.ledger.dsn)

    assert pruned.checkpoint_rows > 0
    rows = await small.ledger.fetch("SELECT DISTINCT epoch FROM checkpoint_buckets ORDER BY 1")
    assert [2, 3] == [row["epoch"] for row in rows]
    assert await adds_up(small)


async def test_what_pruned_reservations_count_in_windows_that_stay_is_kept(
    small: SmallLedger,
) -> None:
    """An audit compares what is posted of a rate limit with its reservations."""
    ledger = small.ledger
    await ledger.budget("key", small.key_id, 500, "total", unit="requests", name="for ever")
    for _ in range(2):
        await small.spend(1)
        await sealed_epochs(small, 1)
        await detach(ledger.dsn, keep=0)
        await ledger.set_clock(ledger.now + BEYOND)
        assert (await prune(ledger.dsn)).reservations > 0
        assert await adds_up(small)
    await small.spend(1)
    assert await adds_up(small)

    posted = await ledger.balances("key", small.key_id, "total", "requests")
    assert (5, 0, 0) == posted
    await ledger.execute("UPDATE pruned_uses SET requests = requests + 1")
    assert not await adds_up(small)
