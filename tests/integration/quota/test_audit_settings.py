"""A setting that was changed by hand is told: every change of the configuration is an entry."""

from datetime import timedelta

import asyncpg
import pytest

from penstock.quota.account import new_secret
from penstock.quota.audit import audit, detach, seal
from penstock.quota.budget import Scope
from penstock.quota.store.adjust_store import Adjustment
from support.ledger import BY_TEST, OPEN_POLICY
from support.small_ledger import SmallLedger

UNGUARD = "ALTER TABLE entries DISABLE TRIGGER ALL; "
ODD = Scope(providers=("a_b*", "50%"), models=("back\\slash*", "*"), tags={"team": "x"})
ADJUSTED = 4
SETTINGS = "each setting is what its last entry says"
ADJUSTMENTS = "each adjustment is one entry"
# What is done by hand, and what is told of it.
BY_HAND = [
    ("UPDATE grants SET amount = amount + 1 WHERE name = 'credit' AND amount = 70",
     "amount_nano_usd is 71, its last entry says 70"),
    ("UPDATE grants SET expires_at = 'infinity' WHERE amount = 33",
     'expires_at is null, its last entry says "2026-12-04T12:00:01Z"'),
    ("UPDATE grants SET expires_at = expires_at + interval '1 microsecond' WHERE amount = 33",
     'expires_at is "2026-12-04T12:00:01.000001Z", its last entry says "2026-12-04T12:00:01Z"'),
    ("UPDATE grants SET commercial_use = false WHERE amount = 70",
     "commercial_use is false, its last entry says true"),
    ("UPDATE grants SET account_id = 3 WHERE amount = 70",
     "it is of account 3, its last entry says 1"),
    ("UPDATE budgets SET limit_amount = 9999 WHERE name = 'org nano_usd total'",
     '"org nano_usd total": limit is 9999, its last entry says 1000'),
    ("UPDATE budgets SET limit_amount = NULL WHERE name = 'org nano_usd total'",
     "limit is null, its last entry says 1000"),
    ("UPDATE budgets SET limit_amount = 7, soft_percents = '{50}' WHERE name = 'odd'",
     "limit is 7, its last entry says null; soft_percents is [50], its last entry says [80, 100]"),
    ("UPDATE budgets SET closed_at = ledger_now() WHERE name = 'team nano_usd total'",
     "closed is true, its last entry says false"),
    ("UPDATE budgets SET closed_at = NULL WHERE name = 'closed'",
     "closed is false, its last entry says true"),
    ("UPDATE budgets SET providers = '{}' WHERE name = 'odd'", 'its last entry says {"tags"'),
    ("UPDATE budgets SET limit_amount = 1 WHERE unit = 'in_flight'",
     "limit is 1, its last entry says 50"),
    ("UPDATE budgets SET time_zone = 'Europe/Berlin' WHERE name = 'odd'",
     'time_zone is "Europe/Berlin", its last entry says "UTC"'),
    ("UPDATE accounts SET prepaid = true WHERE kind = 'org'",
     "prepaid is true, its last entry says false"),
    ("UPDATE accounts SET suspended = false WHERE name = 'stopped'",
     'account 5 "stopped": suspended is false, its last entry says true'),
    ("UPDATE api_keys SET revoked_at = NULL", "revoked is false, its last entry says true"),
    ("UPDATE api_keys SET allowed_models = '{gpt-4o}' WHERE revoked_at IS NULL",
     "allowed_models"),
    ("UPDATE pool_providers SET provider = 'other'", 'providers is ["other"], its last entry says'),
    ("DELETE FROM buckets WHERE budget_id IS NULL; DELETE FROM grants",
     '"credit": it has entries, and is not there'),
]  # fmt: skip
# Behind a seal its digest tells: see test_audit_digests.
ENTRIES_BY_HAND = [
    (UNGUARD + "DELETE FROM entries WHERE detail->>'what' = 'set_budget'",
     '"org nano_usd total": no entry tells how it came to be'),
    (UNGUARD + "DELETE FROM entries WHERE detail->>'what' = 'update_account'"
     " AND detail->'after'->>'prepaid' = 'true'", "before it says"),
    (UNGUARD + "DELETE FROM entries WHERE detail->>'what' = 'create_grant'",
     "and there is no entry before it"),
    (UNGUARD + "DELETE FROM entries WHERE operation = 'grant'",
     "no entry tells how it came to be"),
    (UNGUARD + "DELETE FROM entries WHERE detail->>'what' = 'close_budget'",
     '"closed": closed is true, its last entry says false'),
    (UNGUARD + "UPDATE entries SET detail = '{\"what\": \"set_budget\", \"after\": 1}'"
     " WHERE detail->>'what' = 'set_budget'", "no entry tells how it came to be"),
]  # fmt: skip
ADJUSTED_BY_HAND = [
    ("DELETE FROM adjustments", "adjustment ? (entry {}): it posted 4, and nothing remembers"),
    ("UPDATE adjustments SET amount = 3", 'adjustment "a" (entry {}): it is of 3 to'),
    ("UPDATE adjustments SET entry_id = NULL", "there is no such entry"),
    ("UPDATE adjustments SET entry_id = 1", 'adjustment "a" (entry 1): there is no such entry'),
    ("UPDATE adjustments SET reservation_id = gen_random_uuid()", "its entry says 4 to"),
    (UNGUARD + "DELETE FROM entries WHERE operation = 'adjust'",
     'adjustment "a" (entry {}): there is no such entry'),
]  # fmt: skip


@pytest.fixture
async def small(small: SmallLedger) -> SmallLedger:
    """With what else an operator sets: odd patterns, a closed budget, ends, a suspension."""
    ledger = small.ledger
    stopped = await ledger.accounts.create_account(BY_TEST, "org", "stopped", None)
    await ledger.accounts.update_account(BY_TEST, "org", stopped.id, prepaid=True)
    await ledger.accounts.update_account(BY_TEST, "org", stopped.id, prepaid=False)
    await ledger.accounts.update_account(BY_TEST, "org", stopped.id, suspended=True)
    (row,) = await ledger.fetch("SELECT team_id FROM accounts WHERE id = $1", small.key_id)
    gone = await ledger.accounts.create_key(
        BY_TEST, row["team_id"], "gone", OPEN_POLICY, new_secret()
    )
    await ledger.accounts.revoke_key(BY_TEST, gone.id)
    await ledger.budget("key", gone.id, None, name="odd", scope=ODD, soft_percents=(80, 100))
    closed = await ledger.budget("key", gone.id, 5, name="closed")
    await ledger.budgets.close_budget(BY_TEST, closed, money=True)
    await ledger.grant("org", stopped.id, 33, ends_in=timedelta(days=10), scope=ODD)
    ended = await ledger.grant("org", stopped.id, 44)
    await ledger.grants.end_grant(BY_TEST, ended)
    return small


async def findings(connection: asyncpg.Connection, *, full: bool = False) -> dict[str, list[str]]:
    """By check."""
    report = await audit(connection, full=full)
    return {check.name: list(check.findings) for check in report.checks if check.findings}


async def test_what_operators_set_passes(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    assert {} == await findings(connection)
    assert (await seal(small.ledger.dsn)).ok
    assert {} == await findings(connection)
    assert {} == await findings(connection, full=True)
    await detach(small.ledger.dsn, keep=0)
    assert {} == await findings(connection, full=True)


@pytest.mark.parametrize(
    ("change", "told", "sealed"),
    [(*one, sealed) for one in BY_HAND for sealed in (False, True)]
    + [(*one, False) for one in ENTRIES_BY_HAND],
)
async def test_a_setting_that_was_changed_by_hand_is_told(
    small: SmallLedger, connection: asyncpg.Connection, change: str, told: str, sealed: bool
) -> None:
    if sealed:
        await seal(small.ledger.dsn)
        await detach(small.ledger.dsn, keep=0)
    await connection.execute(change)

    found = (await findings(connection))[SETTINGS]

    assert any(told in finding for finding in found), found


@pytest.mark.parametrize(("change", "told"), ADJUSTED_BY_HAND)
async def test_an_adjustment_that_was_changed_by_hand_is_told(
    small: SmallLedger, connection: asyncpg.Connection, change: str, told: str
) -> None:
    id_ = await small.spend(5)
    made = await small.ledger.adjustments.adjust(BY_TEST, Adjustment("a", None, id_, ADJUSTED))
    assert {} == await findings(connection)
    await connection.execute(change)

    found = (await findings(connection))[ADJUSTMENTS]

    assert any(told.format(made.entry["id"]) in finding for finding in found), found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "DELETE FROM adjustments",
            "epoch 1 1 adjustments were sealed, 0 are here",
        ),
        ("UPDATE adjustments SET amount = 3", "until the end of epoch 1 are not what was sealed"),
    ],
)
async def test_a_sealed_adjustment_that_was_changed_by_hand_is_told(
    small: SmallLedger, connection: asyncpg.Connection, change: str, told: str
) -> None:
    id_ = await small.spend(5)
    await small.ledger.adjustments.adjust(BY_TEST, Adjustment("a", None, id_, ADJUSTED))
    await seal(small.ledger.dsn)
    await detach(small.ledger.dsn, keep=0)
    await small.ledger.adjustments.adjust(BY_TEST, Adjustment("b", None, id_, ADJUSTED))
    assert {} == await findings(connection)
    await connection.execute(change)

    assert any(told in finding for finding in (await findings(connection))[ADJUSTMENTS])


async def test_a_setting_is_compared_with_the_last_of_its_entries(
    small: SmallLedger, connection: asyncpg.Connection
) -> None:
    """Before and after a seal, and each time it changes."""
    for limit in (2_000, 1_500, None, 1_000):
        await small.ledger.budget("key", small.key_id, limit, name="key nano_usd total")
        assert {} == await findings(connection)
        assert (await seal(small.ledger.dsn)).ok
        assert {} == await findings(connection)
