"""What was sealed and is changed later is told, in whatever column, attached or put away."""

from datetime import timedelta

import asyncpg
import pytest

from penstock.quota.audit import audit, detach, digests, seal
from support.small_ledger import SmallLedger

DIGESTS = "each sealed epoch is as it was sealed"
SOME = " WHERE operation = 'settle'"
CHANGES = [
    "UPDATE {} SET account_id = account_id + 1 WHERE operation = 'configure'",
    "UPDATE {} SET actor = 'somebody else' WHERE actor IS NOT NULL",
    "UPDATE {} SET reason = '' WHERE reason IS NOT NULL",
    "UPDATE {} SET reason = NULL WHERE reason IS NOT NULL",
    "UPDATE {} SET at = at + interval '1 microsecond'" + SOME,
    "UPDATE {} SET detail = '{{}}' WHERE detail IS NOT NULL",
    "UPDATE {} SET operation = 'late_settle'" + SOME,
    "UPDATE {} SET slice_lapsed = '{{0}}' WHERE slice_ids IS NOT NULL",
    "UPDATE {} SET posted = posted + 1, available = available - 1" + SOME,
    "DELETE FROM {} WHERE operation = 'configure'",
    "DELETE FROM {} WHERE id = (SELECT max(id) FROM {})",
    (
        "INSERT INTO {} (id, epoch, at, operation, account_id, bucket_ids) OVERRIDING SYSTEM VALUE"
        " VALUES (10000, 1, now(), 'configure', 1, '{{}}')"
    ),
]


@pytest.fixture
async def small(small: SmallLedger) -> SmallLedger:
    """Epochs 1 and 2 are sealed."""
    for _ in range(2):
        await small.spend(3)
        assert (await seal(small.ledger.dsn)).ok
    return small


async def differing(connection: asyncpg.Connection) -> list[str]:
    """Of a full audit: what is told of sealed epochs."""
    report = await audit(connection, full=True)
    (check,) = [check for check in report.checks if check.name == DIGESTS]
    return list(check.findings)


async def by_hand(connection: asyncpg.Connection, table: str, change: str) -> None:
    await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
    await connection.execute(change.format(table, table))


@pytest.mark.parametrize("keep", [2, 0], ids=["attached", "detached"])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_of_a_sealed_entry_is_told(
    small: SmallLedger, connection: asyncpg.Connection, change: str, keep: int
) -> None:
    await detach(small.ledger.dsn, keep=keep)
    assert [] == await differing(connection)
    table = "entries_1" if keep else "entries_archive_1"
    await by_hand(connection, table, change)

    (finding,) = await differing(connection)

    assert finding.startswith(f"epoch 1: {table} is not what was sealed")


async def test_a_digest_does_not_depend_on_the_session(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET extra_float_digits = 0;"
        "SET bytea_output = 'escape'; SET intervalstyle = 'iso_8601'"
    )

    assert [] == await differing(connection)


async def test_a_column_of_a_later_release_is_no_part_of_what_was_sealed(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await connection.execute("ALTER TABLE entries ADD COLUMN later bigint NOT NULL DEFAULT 7")

    assert [] == await differing(connection)


async def test_an_epochs_digest_stands_on_the_one_before(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    """Whoever writes a digest of what he changed must write all that follow, too."""
    await by_hand(connection, "entries_1", CHANGES[1])
    forged = await digests.entries_digest(connection, "entries_1", b"")
    await connection.execute("UPDATE epochs SET digest = $1 WHERE id = 1", forged)

    (finding,) = await differing(connection)

    assert finding.startswith("epoch 2: entries_2 is not")


async def test_whoever_kept_a_digest_elsewhere_needs_not_trust_the_epochs(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    kept = dict((await audit(connection, full=True)).verified_epochs)
    await by_hand(connection, "entries_1", CHANGES[1])
    before = b""
    for epoch in (1, 2):
        before = await digests.entries_digest(connection, f"entries_{epoch}", before)
        await connection.execute("UPDATE epochs SET digest = $1 WHERE id = $2", before, epoch)

    report = await audit(connection, full=True)

    assert [] == [c for c in report.checks if c.findings and c.name == DIGESTS]
    found = dict(report.verified_epochs)
    assert [True, True] == [kept[epoch] != found[epoch] for epoch in (1, 2)]


async def test_the_digest_that_a_seal_tells_is_the_one_that_is_kept(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await small.spend(1)

    sealed = await seal(small.ledger.dsn)

    kept = await connection.fetchval("SELECT digest FROM epochs WHERE id = 3")
    assert kept.hex() == sealed.digest


async def test_archives_that_were_dropped_are_counted_and_are_no_fault(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await detach(small.ledger.dsn, keep=1)
    await connection.execute("DROP TABLE entries_archive_1")

    report = await audit(connection, full=True)

    assert report.ok
    assert ([2], (1,)) == ([epoch for epoch, _ in report.verified_epochs], report.gone_epochs)


async def test_entries_that_vanished_without_a_detach_are_told(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await connection.execute("DROP TABLE entries_1")

    assert ["epoch 1: its entries are gone, and nobody detached them"] == (
        await differing(connection)
    )


async def test_a_seal_after_the_clock_went_back_leaves_a_right_ledger_right(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    """By hours: what is younger by the clock was made before, and what is older after."""
    before = await small.reserve(ttl_ms=86_400_000)
    await small.ledger.advance(-timedelta(hours=3))
    await small.spend(2)
    assert (await seal(small.ledger.dsn)).ok
    await small.settle(before, 5)
    await small.spend(2)

    reports = [await audit(connection, full=full) for full in (False, True)]

    assert [[], []] == [report.findings for report in reports]
    assert (await seal(small.ledger.dsn)).ok


async def test_a_reserve_that_lost_its_first_entry_is_told_whatever_the_clock_said(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    await small.ledger.advance(-timedelta(hours=3))
    id_ = await small.reserve(0, tokens=0)
    await by_hand(connection, "entries_3", f"DELETE FROM {{}} WHERE reservation_id = '{id_}'")

    report = await audit(connection)

    assert [f"reservation {id_} (held): its first entry is missing"] == report.findings
