"""An epoch is sealed only with its proof, whatever happens meanwhile and wherever it is killed."""

import asyncio

import asyncpg
import pytest

from penstock.quota.audit import AuditReport, Busy, Sealed, audit_dsn, seal, sealing
from support.ledger import reserve, settle, told
from support.small_ledger import SmallLedger
from support.wait import until

STEPS = (
    "preparing", "closing", "closed", "entries", "settings", "reservations", "balances", "writing",
    "carrying over", "digesting", "committing", "sealed",
)  # fmt: skip
WRITERS = 4
SEALS = 3


class Killed(BaseException):
    """As a signal ends a process: nothing of ours handles it."""


def faults(report: AuditReport | None) -> list[str]:
    assert report is not None
    return report.findings


async def epochs(small: SmallLedger) -> list[tuple[bool, bool]]:
    """Of each: is it closed, is it sealed."""
    rows = await small.ledger.fetch(
        "SELECT closed_at IS NOT NULL, sealed_at IS NOT NULL FROM epochs ORDER BY id"
    )
    return [tuple(row) for row in rows]


async def test_an_audit_begins_at_the_newest_checkpoint(small: SmallLedger) -> None:
    before = await audit_dsn(small.ledger.dsn)

    sealed = await seal(small.ledger.dsn)
    behind = await audit_dsn(small.ledger.dsn)
    await small.spend(9)
    later = await audit_dsn(small.ledger.dsn)
    full = await audit_dsn(small.ledger.dsn, full=True)

    assert [(True, True), (False, False)] == await epochs(small)
    # One reservation holds, one is suspected.
    assert (True, 1, 2) == (sealed.ok, sealed.epoch, sealed.reservations)
    assert [] == faults(behind) + faults(later) + faults(full)
    assert (1, 0, 35) == (behind.base_epoch, behind.entries, behind.posted_nano_usd)
    assert (1, 2, 44) == (later.base_epoch, later.entries, later.posted_nano_usd)
    assert (None, before.entries + 2, 44) == (full.base_epoch, full.entries, full.posted_nano_usd)


async def test_what_is_held_over_a_checkpoint_is_settled_behind_it(small: SmallLedger) -> None:
    await seal(small.ledger.dsn)
    await small.settle(small.held, 21)
    await small.settle(small.suspected, 1)

    report = await audit_dsn(small.ledger.dsn)
    sealed = await seal(small.ledger.dsn)

    assert [] == faults(report)
    assert (True, 2, 0) == (sealed.ok, sealed.epoch, sealed.reservations)
    assert [] == faults(await audit_dsn(small.ledger.dsn, full=True))


async def test_a_fault_behind_the_checkpoint_is_found_from_it(small: SmallLedger) -> None:
    await seal(small.ledger.dsn)
    await small.ledger.execute(
        "UPDATE reservations SET amount = amount + 1 WHERE id = $1", small.held
    )

    (fault,) = faults(await audit_dsn(small.ledger.dsn))

    assert fault.startswith(f"reservation {small.held} (held): held/suspense are 21/0")


async def test_nothing_is_sealed_where_nothing_happened(small: SmallLedger) -> None:
    await seal(small.ledger.dsn)

    assert Sealed(None) == await seal(small.ledger.dsn)
    assert [(True, True), (False, False)] == await epochs(small)


async def test_a_ledger_that_does_not_add_up_is_not_sealed(small: SmallLedger) -> None:
    await small.ledger.execute("UPDATE buckets SET posted = posted + 1 WHERE unit = 'nano_usd'")

    first = await seal(small.ledger.dsn)
    again = await seal(small.ledger.dsn)
    state = await epochs(small)
    await small.ledger.execute("UPDATE buckets SET posted = posted - 1 WHERE unit = 'nano_usd'")
    mended = await seal(small.ledger.dsn)

    assert (False, False, True) == (first.ok, again.ok, mended.ok)
    assert [(True, False), (False, False)] == state
    assert [(True, True), (False, False)] == await epochs(small)


@pytest.mark.parametrize("step", STEPS)
async def test_a_seal_killed_at_a_step_is_ended_by_the_next(small: SmallLedger, step: str) -> None:
    reached = []

    def kill(stage: str, _done: int, _total: int) -> None:
        reached.append(stage)
        if stage == step:
            raise Killed

    with pytest.raises(Killed):
        await seal(small.ledger.dsn, kill)
    was_sealed = (True, True) in await epochs(small)
    await small.spend(2)
    assert [] == faults(await audit_dsn(small.ledger.dsn))
    sealed = await seal(small.ledger.dsn)

    assert STEPS[: STEPS.index(step) + 1] == tuple(reached)
    assert (step == "sealed") == was_sealed
    assert (True, 2 if was_sealed else 1) == (sealed.ok, sealed.epoch)
    assert [] == faults(await audit_dsn(small.ledger.dsn))
    assert [] == faults(await audit_dsn(small.ledger.dsn, full=True))


async def test_two_seals_at_once_seal_once(small: SmallLedger) -> None:
    dsn = small.ledger.dsn

    both = await asyncio.gather(seal(dsn), seal(dsn))

    assert {1, None} == {sealed.epoch for sealed in both}
    assert [] == faults(await audit_dsn(dsn, full=True))


async def test_batches_go_on_while_epochs_are_sealed(small: SmallLedger) -> None:
    done = asyncio.Event()
    written = [0] * WRITERS
    progressed = asyncio.Event()

    async def write(place: int) -> None:
        while not done.is_set():
            id_ = small.ledger.id()
            request = reserve(id_, small.key_id, 0, provider="local", pool="local", ttl_ms=10**6)
            assert told(await small.ledger.one(request)) == "ok"
            assert told(await small.ledger.one(settle(id_, 0))) == "ok"
            written[place] += 1
            progressed.set()

    await small.ledger.budget("key", small.key_id, 1_000_000, "hour", unit="requests")
    writers = [asyncio.create_task(write(place)) for place in range(WRITERS)]
    sealed = []
    for _ in range(SEALS):
        progressed.clear()
        await progressed.wait()
        sealed.append(await seal(small.ledger.dsn))
    done.set()
    await asyncio.gather(*writers)

    assert [] == [fault for one in sealed for fault in faults(one.report)]
    assert list(range(1, SEALS + 1)) == [one.epoch for one in sealed]
    full = await audit_dsn(small.ledger.dsn, full=True)
    assert [] == faults(full)
    assert full.reservations == 6 + sum(written)


async def test_a_writer_that_takes_long_delays_the_seal_and_no_batch(
    small: SmallLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "TRIES_MAX", 3)
    slow = await asyncpg.connect(small.ledger.dsn)
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("SELECT current_epoch()")

    sealing_task = asyncio.create_task(seal(small.ledger.dsn))
    while not sealing_task.done():
        await small.spend(1)
    with pytest.raises(Busy, match="closing epoch 1"):
        await sealing_task
    await transaction.rollback()
    await slow.close()

    assert [(False, False)] == await epochs(small)
    assert (await seal(small.ledger.dsn)).ok


async def test_an_entry_lies_in_the_epoch_in_which_it_was_committed(small: SmallLedger) -> None:
    """The close waits for a transaction that began before it."""
    writer = await asyncpg.connect(small.ledger.dsn)
    transaction = writer.transaction()
    await transaction.start()
    epoch = await writer.fetchval("SELECT current_epoch()")
    sealing_task = asyncio.create_task(seal(small.ledger.dsn))
    await until(small.ledger.is_blocked)
    await writer.execute(
        "INSERT INTO entries (epoch, at, operation, account_id, bucket_ids)"
        " VALUES ($1, ledger_now(), 'configure', $2, '{}')",
        epoch,
        small.key_id,
    )
    await transaction.commit()
    await writer.close()

    sealed = await sealing_task

    assert (True, 1) == (sealed.ok, sealed.epoch)
    rows = await small.ledger.fetch("SELECT entries FROM epochs WHERE id = 1")
    counted = await small.ledger.fetch("SELECT count(*) FROM entries WHERE epoch = 1")
    assert counted[0][0] == rows[0][0]
