"""What an id remembers and who may not spend: LEDGER, I3."""

from datetime import timedelta

import pytest

from support.ledger import (
    LIMIT,
    SUSPEND,
    Ledger,
    held,
    reserve,
    settle,
    told,
    void,
)


async def test_a_void_that_came_before_its_reserve_is_remembered(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = ledger.id()

    assert told(await ledger.one(void(id_))) == "ok"

    assert told(await ledger.one(reserve(id_, key_id, 10))) == "RESERVATION_VOIDED"
    assert await ledger.balances("key", key_id) == (0, 0, 0)


@pytest.mark.parametrize("age", [timedelta(days=8), timedelta(days=7, seconds=1)])
async def test_an_id_beyond_the_horizon_is_never_taken_as_new(
    ledger: Ledger, age: timedelta
) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = ledger.id()
    await ledger.advance(age)

    assert told(await ledger.one(reserve(id_, key_id, 10))) == "RESERVATION_ID_TOO_OLD"
    assert told(await ledger.one(void(id_))) == "RESERVATION_UNKNOWN"


async def test_an_id_within_the_horizon_is_taken(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = ledger.id()
    await ledger.advance(timedelta(days=6, hours=23))

    assert told(await ledger.one(reserve(id_, key_id, 10))) == "ok"


async def test_an_id_from_the_future_is_refused(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    await ledger.advance(timedelta(days=2))
    id_ = ledger.id()
    await ledger.advance(timedelta(days=-2))

    assert told(await ledger.one(reserve(id_, key_id, 10))) == "RESERVATION_ID_IN_FUTURE"


CHANGES = [
    {"request_id": "req_2"},
    {"attempt": 2},
    {"pool": "local"},
    {"provider": "azure"},
    {"model": "gpt-5"},
    {"ttl_ms": 1},
    {"end_user": "x"},
    {"tags": {"a": "b"}},
]


@pytest.mark.parametrize("changes", CHANGES, ids=[next(iter(c)) for c in CHANGES])
async def test_every_field_belongs_to_the_fingerprint(
    ledger: Ledger, changes: dict[str, object]
) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, key_id))) == "ok"

    assert told(await ledger.one(reserve(id_, key_id, **changes))) == "RESERVATION_ID_REUSED"
    assert told(await ledger.one(reserve(id_, key_id))) == "ok"


async def test_an_id_of_another_organisation_is_reused_not_shared(ledger: Ledger) -> None:
    first, second = await ledger.new_key(LIMIT), await ledger.new_key(LIMIT)
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, first))) == "ok"

    assert told(await ledger.one(reserve(id_, second))) == "RESERVATION_ID_REUSED"
    assert await ledger.balances("key", second) == (0, 0, 0)


async def test_a_repeat_gets_the_first_answer_though_the_rest_has_changed(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = ledger.id()
    first = await ledger.one(reserve(id_, key_id))
    await ledger.one(reserve(ledger.id(), key_id, 50))
    await ledger.advance(timedelta(seconds=30))

    assert first == await ledger.one(reserve(id_, key_id))


async def test_a_lowered_limit_stops_admission_and_breaks_nothing(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = await held(ledger, key_id, "paid")

    await ledger.budget("key", key_id, 20)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(settle(id_, 40))) == "ok"
    assert await ledger.balances("key", key_id) == (40, 0, 0)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("UPDATE api_keys SET revoked_at = now() WHERE account_id = $1", "KEY_REVOKED"),
        (
            "UPDATE api_keys SET expires_at = ledger_now() WHERE account_id = $1",
            "KEY_EXPIRED",
        ),
        (
            SUSPEND + "(SELECT org_id FROM accounts WHERE id = $1)",
            "ACCOUNT_SUSPENDED",
        ),
        (
            SUSPEND + "(SELECT team_id FROM accounts WHERE id = $1)",
            "ACCOUNT_SUSPENDED",
        ),
    ],
)
async def test_a_key_that_may_not_spend_is_refused_for_ever_under_that_id(
    ledger: Ledger, sql: str, reason: str
) -> None:
    key_id = await ledger.new_key(LIMIT)
    await ledger.execute(sql, key_id)
    id_ = ledger.id()

    assert told(await ledger.one(reserve(id_, key_id))) == reason
    # All of it is as its entries say again.
    await ledger.execute(
        "UPDATE accounts SET suspended = false WHERE id IN (SELECT unnest("
        "ARRAY[org_id, team_id]) FROM accounts WHERE id = $1)",
        key_id,
    )
    await ledger.execute(
        "UPDATE api_keys SET expires_at = NULL, revoked_at = NULL WHERE account_id = $1", key_id
    )
    assert told(await ledger.one(reserve(id_, key_id))) == reason
    assert await ledger.balances("key", key_id) == (0, 0, 0)


async def test_an_unknown_key_is_refused_and_not_remembered(ledger: Ledger) -> None:
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, 10**12))) == "KEY_UNKNOWN"

    key_id = await ledger.new_key(LIMIT)
    assert told(await ledger.one(reserve(id_, key_id))) == "ok"


async def test_a_team_is_no_key(ledger: Ledger) -> None:
    _, team_id, _ = await ledger.new_path()

    assert told(await ledger.one(reserve(ledger.id(), team_id))) == "KEY_UNKNOWN"
