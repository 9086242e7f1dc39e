"""The audit finds what it claims to find: each invariant is broken by hand."""

import asyncpg
import pytest

from penstock.quota.audit import FINDINGS_MAX, audit, seal
from penstock.quota.store.adjust_store import Adjustment
from support.ledger import BY_TEST
from support.small_ledger import SmallLedger

LEGS = "each entry's debits"
FOLDS = "each balance is"
RESERVATIONS = "each reservation is"
RATES = "each rate limit"
LIMITS = "nothing was admitted"
GRANTS = "each grant"
CHECKPOINTS = "each checkpoint"

UNGUARD = (
    "ALTER TABLE entries DISABLE TRIGGER ALL; ALTER TABLE entries DROP CONSTRAINT entries_check; "
)
SETTLED = " WHERE state = 'settled' AND NOT late"
HELD = " WHERE state = 'held'"
UNBEGUN = (
    "INSERT INTO reservations (id, state, created_at, epoch, key_id)"
    " SELECT gen_random_uuid(), 'settled', now(), 1, 1 FROM generate_series(1, 1000)"
)


def of_limit(unit: str, limit: int) -> str:
    """As if it had been this from the beginning."""
    return (
        f"{UNGUARD} UPDATE budgets SET limit_amount = {limit} WHERE unit = '{unit}';"
        f" UPDATE entries SET detail = jsonb_set(detail, '{{after,limit}}', '{limit}')"
        f" WHERE detail->'after'->>'unit' = '{unit}'"
    )


BREAKS = [
    (UNGUARD + "UPDATE entries SET available = available + 1", LEGS),
    (UNGUARD + "UPDATE entries SET slice_held = '{}' WHERE slice_ids IS NOT NULL", LEGS),
    (UNGUARD + "UPDATE entries SET slice_posted = NULL WHERE slice_ids IS NOT NULL", LEGS),
    ("UPDATE buckets SET posted = posted + 1 WHERE unit = 'nano_usd'", FOLDS),
    ("UPDATE buckets SET held = held + 1 WHERE unit = 'nano_usd'", FOLDS),
    ("UPDATE buckets SET suspense = suspense + 1 WHERE grant_id IS NOT NULL", FOLDS),
    ("UPDATE buckets SET lapsed = 1 WHERE grant_id IS NOT NULL", FOLDS),
    ("DELETE FROM buckets WHERE grant_id IS NOT NULL", FOLDS),
    (UNGUARD + "DELETE FROM entries WHERE operation = 'settle'", FOLDS),
    (UNGUARD + "UPDATE entries SET bucket_ids = '{}' WHERE operation = 'reserve'", FOLDS),
    (UNGUARD + "UPDATE entries SET slice_ids = NULL, slice_held = NULL, slice_suspense = NULL,"
     " slice_posted = NULL WHERE operation = 'reserve'", FOLDS),
    ("UPDATE reservations SET state = 'held'" + SETTLED, RESERVATIONS),
    ("UPDATE reservations SET state = 'voided'" + SETTLED, RESERVATIONS),
    ("UPDATE reservations SET state = 'expired', pool = 'local'" + HELD, RESERVATIONS),
    ("UPDATE reservations SET amount = amount + 1" + HELD, RESERVATIONS),
    ("UPDATE reservations SET amount = amount + 1 WHERE state = 'expired'", RESERVATIONS),
    ("UPDATE reservations SET posted = posted + 1" + SETTLED, RESERVATIONS),
    ("UPDATE reservations SET adjusted = adjusted + 1" + SETTLED, RESERVATIONS),
    ("UPDATE reservations SET overage = NOT overage" + SETTLED, RESERVATIONS),
    ("UPDATE reservations SET late = NOT late WHERE state = 'settled'", RESERVATIONS),
    ("UPDATE reservations SET bucket_ids = bucket_ids[2:]" + SETTLED, RESERVATIONS),
    ("UPDATE reservations SET slice_amounts = slice_amounts[2:]" + HELD, RESERVATIONS),
    ("UPDATE reservations SET slice_amounts[1] = slice_amounts[1] - 1" + HELD, RESERVATIONS),
    ("UPDATE reservations SET slice_amounts[1] = 21" + SETTLED, RESERVATIONS),
    ("DELETE FROM reservations" + SETTLED, RESERVATIONS),
    (UNBEGUN, RESERVATIONS),
    (UNGUARD + "DELETE FROM entries WHERE operation = 'reserve'", RESERVATIONS),
    (UNGUARD + "INSERT INTO entries (epoch, at, operation, reservation_id, account_id, bucket_ids)"
     " SELECT epoch, at, operation, reservation_id, account_id, bucket_ids FROM entries"
     " WHERE operation = 'settle'", RESERVATIONS),
    (UNGUARD + "DELETE FROM entries WHERE operation = 'void'", RESERVATIONS),
    ("UPDATE buckets SET held = held + 1 WHERE unit = 'requests'", RATES),
    ("UPDATE buckets SET held = held - 1 WHERE unit = 'tokens'", RATES),
    ("UPDATE buckets SET suspense = 0 WHERE unit = 'tokens'", RATES),
    ("UPDATE buckets SET posted = 1 WHERE unit = 'in_flight'", RATES),
    ("UPDATE buckets SET posted = posted + 1 WHERE unit = 'requests'", RATES),
    ("UPDATE buckets SET posted = posted - 1 WHERE unit = 'tokens'", RATES),
    ("UPDATE reservations SET completion_tokens = 6" + SETTLED, RATES),
    # The last reserve left 75 posted, held or suspected.
    (of_limit("nano_usd", 74), LIMITS),
    (of_limit("in_flight", 0), LIMITS),
    ("UPDATE grants SET amount = 1", GRANTS),
]  # fmt: skip


async def test_a_sound_ledger_passes(small: SmallLedger, connection: asyncpg.Connection) -> None:
    report = await audit(connection)

    assert [] == report.findings
    assert (6, 35) == (report.reservations, report.posted_nano_usd)
    counted = await connection.fetchval("SELECT count(*) FROM entries")
    assert (counted, None) == (report.entries, report.base_epoch)
    assert report.buckets == await connection.fetchval("SELECT count(*) FROM buckets")


@pytest.mark.parametrize(("change", "check"), BREAKS)
async def test_a_broken_ledger_is_found(
    connection: asyncpg.Connection, change: str, check: str
) -> None:
    await connection.execute(change)

    report = await audit(connection)

    assert not report.ok
    assert any(c.findings for c in report.checks if c.name.startswith(check))


async def test_a_difference_is_told_by_name_and_figures(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "UPDATE buckets b SET posted = posted + 1 FROM budgets x"
        " WHERE x.id = b.budget_id AND x.account_id = $1 AND x.name = 'key nano_usd total'",
        small.key_id,
    )

    report = await audit(connection)

    (finding,) = report.findings
    assert finding.endswith(
        f'of key {small.key_id} "key"): posted/held/suspense/lapsed are 36/20/20/0,'
        " its entries say 35/20/20/0"
    )
    assert '"key nano_usd total"' in finding


async def test_what_came_unasked_may_lie_over_a_limit(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await connection.execute(of_limit("nano_usd", 75))
    await small.settle(small.held, 1_000)

    assert (await audit(connection)).ok


async def test_a_limit_that_was_lowered_bounds_what_is_admitted_after_the_next_seal(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await small.ledger.budget("key", small.key_id, 10, name="key nano_usd total")
    assert (await audit(connection)).ok
    assert (await seal(small.ledger.dsn)).ok
    await small.ledger.budget("key", small.key_id, 76, name="key nano_usd total")
    await small.reserve(1)
    assert (await audit(connection)).ok

    # As if a reserve of 1 had been admitted over the 10 that were in force.
    await connection.execute(
        UNGUARD + "UPDATE budgets SET limit_amount = 10 WHERE name = 'key nano_usd total';"
        " DELETE FROM entries WHERE epoch = 2 AND operation = 'configure'"
    )
    report = await audit(connection)

    (finding,) = report.findings
    assert finding.endswith(
        "76 were used when something was admitted; its limit was never above 10"
    )


async def test_an_adjustment_is_part_of_the_sum(small: SmallLedger) -> None:
    id_ = await small.spend(5)
    await small.ledger.adjustments.adjust(BY_TEST, Adjustment("a", None, id_, 4))

    report = await small.ledger.audit()

    assert [] == report.findings
    assert 44 == report.posted_nano_usd


async def test_a_forged_checkpoint_is_found(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await seal(small.ledger.dsn)
    await connection.execute("UPDATE checkpoint_buckets SET posted = posted + 1")

    since = await audit(connection)
    full = await audit(connection, full=True)

    assert {FOLDS} == {c.name[: len(FOLDS)] for c in since.checks if c.findings}
    assert {CHECKPOINTS} == {c.name[: len(CHECKPOINTS)] for c in full.checks if c.findings}


async def test_a_thousand_faults_are_told_as_a_hundred(connection: asyncpg.Connection) -> None:
    await connection.execute(UNBEGUN)

    report = await audit(connection)

    assert [FINDINGS_MAX] == [len(c.findings) for c in report.checks if c.findings]


async def test_progress_reaches_its_end_in_every_stage(connection: asyncpg.Connection) -> None:
    told: dict[str, tuple[int, int]] = {}

    await audit(connection, progress=lambda stage, done, total: told.update({stage: (done, total)}))

    assert {"entries", "settings", "reservations", "balances"} == set(told)
    assert all(done == total for done, total in told.values())
