"""Every operation in every state of a reservation, and every refusal: LEDGER, I1 to I9."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from penstock.quota.ledger import Answer, Operation
from support.ledger import (
    LIMIT,
    Ledger,
    cache_hit,
    expired,
    extend,
    held,
    reserve,
    settle,
    told,
    void,
)


async def settled(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await held(ledger, key_id, pool)
    assert told(await ledger.one(settle(id_, 30))) == "ok"
    return id_


async def voided(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await held(ledger, key_id, pool)
    assert told(await ledger.one(void(id_))) == "ok"
    return id_


async def extended(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await held(ledger, key_id, pool)
    assert told(await ledger.one(extend(id_, 60))) == "ok"
    return id_


async def extended_expired(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await extended(ledger, key_id, pool)
    await ledger.advance(timedelta(minutes=2))
    return id_


async def settled_late(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await expired(ledger, key_id, pool)
    assert told(await ledger.one(settle(id_, 30))) == "ok"
    return id_


async def voided_late(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await expired(ledger, key_id, pool)
    assert told(await ledger.one(void(id_))) == "ok"
    return id_


async def swept(ledger: Ledger, key_id: int, pool: str) -> str:
    """Expired, and resolved by another's reserve already."""
    id_ = await expired(ledger, key_id, pool)
    other = ledger.id()
    assert told(await ledger.one(reserve(other, key_id, 0))) == "ok"
    assert told(await ledger.one(void(other))) == "ok"
    return id_


async def refused(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, key_id, 101, pool=pool))) == "BUDGET_EXCEEDED"
    return id_


async def voided_before(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = ledger.id()
    assert told(await ledger.one(void(id_))) == "ok"
    return id_


async def hit(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = ledger.id()
    assert told(await ledger.one(cache_hit(id_, key_id))) == "ok"
    return id_


async def unknown(ledger: Ledger, key_id: int, pool: str) -> str:
    return ledger.id()


State = Callable[[Ledger, int, str], Awaitable[str]]
NOTHING = (0, 0, False, False)

# state, pool, operation, answer (reason, or posted/released/overage/late), posted/held/suspense.
SCENARIOS: list[tuple[State, str, str, object, tuple[int, int, int]]] = [
    (unknown, "paid", "reserve 40", NOTHING, (0, 40, 0)),
    (unknown, "paid", "reserve 101", "BUDGET_EXCEEDED", (0, 0, 0)),
    (unknown, "paid", "extend 50", "RESERVATION_UNKNOWN", (0, 0, 0)),
    (unknown, "paid", "settle 30", "RESERVATION_UNKNOWN", (0, 0, 0)),
    (unknown, "paid", "void", NOTHING, (0, 0, 0)),
    (unknown, "paid", "hit", NOTHING, (0, 0, 0)),
    (held, "paid", "reserve 40", NOTHING, (0, 40, 0)),
    (held, "paid", "reserve 41", "RESERVATION_ID_REUSED", (0, 40, 0)),
    (held, "paid", "hit", "RESERVATION_ID_REUSED", (0, 40, 0)),
    (held, "paid", "extend 100", NOTHING, (0, 100, 0)),
    (held, "paid", "extend 40", NOTHING, (0, 40, 0)),
    (held, "paid", "extend 39", NOTHING, (0, 40, 0)),
    (held, "paid", "extend 101", "BUDGET_EXCEEDED", (0, 40, 0)),
    (held, "paid", "settle 30", (30, 10, False, False), (30, 0, 0)),
    (held, "paid", "settle 40", (40, 0, False, False), (40, 0, 0)),
    (held, "paid", "settle 0", (0, 40, False, False), (0, 0, 0)),
    (held, "paid", "settle 50", (50, 0, True, False), (50, 0, 0)),
    (held, "paid", "settle 150", (150, 0, True, False), (150, 0, 0)),
    (held, "paid", "void", (0, 40, False, False), (0, 0, 0)),
    (held, "local", "settle 30", (30, 10, False, False), (30, 0, 0)),
    (held, "local", "void", (0, 40, False, False), (0, 0, 0)),
    (extended, "paid", "reserve 40", NOTHING, (0, 60, 0)),
    (extended, "paid", "reserve 60", "RESERVATION_ID_REUSED", (0, 60, 0)),
    (extended, "paid", "extend 60", NOTHING, (0, 60, 0)),
    (extended, "paid", "extend 100", NOTHING, (0, 100, 0)),
    (extended, "paid", "settle 50", (50, 10, False, False), (50, 0, 0)),
    (extended, "paid", "settle 70", (70, 0, True, False), (70, 0, 0)),
    (extended, "paid", "void", (0, 60, False, False), (0, 0, 0)),
    (extended_expired, "paid", "settle 50", (50, 10, False, True), (50, 0, 0)),
    (extended_expired, "paid", "void", (0, 60, False, True), (0, 0, 0)),
    (extended_expired, "local", "settle 50", (50, 0, False, True), (50, 0, 0)),
    (settled, "paid", "reserve 40", (30, 10, False, False), (30, 0, 0)),
    (settled, "paid", "reserve 41", "RESERVATION_ID_REUSED", (30, 0, 0)),
    (settled, "paid", "extend 60", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled, "paid", "settle 30", (30, 10, False, False), (30, 0, 0)),
    (settled, "paid", "settle 31", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled, "paid", "settle 30 other usage", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled, "paid", "void", "RESERVATION_SETTLED", (30, 0, 0)),
    (voided, "paid", "reserve 40", (0, 40, False, False), (0, 0, 0)),
    (voided, "paid", "reserve 41", "RESERVATION_ID_REUSED", (0, 0, 0)),
    (voided, "paid", "extend 60", "RESERVATION_VOIDED", (0, 0, 0)),
    (voided, "paid", "settle 30", "RESERVATION_VOIDED", (0, 0, 0)),
    (voided, "paid", "void", (0, 40, False, False), (0, 0, 0)),
    (expired, "paid", "reserve 40", NOTHING, (0, 0, 40)),
    (expired, "paid", "extend 60", "RESERVATION_EXPIRED", (0, 0, 40)),
    (expired, "paid", "settle 30", (30, 10, False, True), (30, 0, 0)),
    (expired, "paid", "settle 0", (0, 40, False, True), (0, 0, 0)),
    (expired, "paid", "settle 70", (70, 0, True, True), (70, 0, 0)),
    (expired, "paid", "settle 150", (150, 0, True, True), (150, 0, 0)),
    (expired, "paid", "void", (0, 40, False, True), (0, 0, 0)),
    (expired, "local", "extend 60", "RESERVATION_EXPIRED", (0, 0, 0)),
    (expired, "local", "settle 30", (30, 0, False, True), (30, 0, 0)),
    (expired, "local", "settle 70", (70, 0, True, True), (70, 0, 0)),
    (expired, "local", "void", (0, 0, False, True), (0, 0, 0)),
    (swept, "paid", "reserve 40", NOTHING, (0, 0, 40)),
    (swept, "paid", "extend 60", "RESERVATION_EXPIRED", (0, 0, 40)),
    (swept, "paid", "settle 30", (30, 10, False, True), (30, 0, 0)),
    (swept, "paid", "void", (0, 40, False, True), (0, 0, 0)),
    (swept, "local", "settle 30", (30, 0, False, True), (30, 0, 0)),
    (swept, "local", "void", (0, 0, False, True), (0, 0, 0)),
    (settled_late, "paid", "extend 60", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled_late, "paid", "settle 30", (30, 10, False, True), (30, 0, 0)),
    (settled_late, "paid", "settle 31", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled_late, "paid", "void", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled_late, "local", "settle 30", (30, 0, False, True), (30, 0, 0)),
    (voided_late, "paid", "settle 30", "RESERVATION_VOIDED", (0, 0, 0)),
    (voided_late, "paid", "void", (0, 40, False, True), (0, 0, 0)),
    (voided_late, "local", "void", (0, 0, False, True), (0, 0, 0)),
    (refused, "paid", "reserve 101", "BUDGET_EXCEEDED", (0, 0, 0)),
    (refused, "paid", "reserve 40", "RESERVATION_ID_REUSED", (0, 0, 0)),
    (refused, "paid", "extend 101", "RESERVATION_REFUSED", (0, 0, 0)),
    (refused, "paid", "settle 30", "RESERVATION_REFUSED", (0, 0, 0)),
    (refused, "paid", "void", NOTHING, (0, 0, 0)),
    (voided_before, "paid", "reserve 40", "RESERVATION_VOIDED", (0, 0, 0)),
    (voided_before, "paid", "extend 40", "RESERVATION_VOIDED", (0, 0, 0)),
    (voided_before, "paid", "settle 40", "RESERVATION_VOIDED", (0, 0, 0)),
    (voided_before, "paid", "void", NOTHING, (0, 0, 0)),
    (hit, "cache", "hit", NOTHING, (0, 0, 0)),
    (hit, "paid", "reserve 40", "RESERVATION_ID_REUSED", (0, 0, 0)),
    (hit, "cache", "extend 40", "RESERVATION_SETTLED", (0, 0, 0)),
    (hit, "cache", "settle 40", "RESERVATION_SETTLED", (0, 0, 0)),
    (hit, "cache", "void", "RESERVATION_SETTLED", (0, 0, 0)),
]


def operation_of(text: str, id_: str, key_id: int, pool: str) -> Operation:
    name, *rest = text.split()
    match name:
        case "reserve":
            return reserve(id_, key_id, int(rest[0]), pool=pool)
        case "hit":
            return cache_hit(id_, key_id)
        case "extend":
            return extend(id_, int(rest[0]), key_id=key_id)
        case "settle":
            usage = {"completion_tokens": 9} if rest[1:] else {}
            return settle(id_, int(rest[0]), key_id=key_id, **usage)
        case _:
            return void(id_, key_id=key_id)


@pytest.mark.parametrize(
    ("state", "pool", "text", "answer", "balances"),
    SCENARIOS,
    ids=[f"{s[0].__name__}-{s[1]}-{s[2].replace(' ', '-')}" for s in SCENARIOS],
)
async def test_operation_in_state(
    ledger: Ledger,
    state: State,
    pool: str,
    text: str,
    answer: object,
    balances: tuple[int, int, int],
) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = await state(ledger, key_id, pool)

    outcome = await ledger.one(operation_of(text, id_, key_id, pool))

    if isinstance(answer, str):
        assert answer == told(outcome)
    else:
        assert isinstance(outcome, Answer), outcome
        given = (outcome.posted_nano_usd, outcome.released_nano_usd, outcome.overage, outcome.late)
        assert answer == given
    # What a batch finds expired is resolved by the batch that asks for it.
    assert balances == await ledger.balances("key", key_id)


THEIRS: list[tuple[State, str]] = [
    (state, pool)
    for state in (held, extended, settled, voided, expired, swept, settled_late, voided_late)
    for pool in ("local", "paid")
] + [(refused, "paid"), (hit, "cache")]


@pytest.mark.parametrize(("state", "pool"), THEIRS)
async def test_another_keys_operation_changes_nothing_in_any_state(
    ledger: Ledger, state: State, pool: str
) -> None:
    owner, other = await ledger.new_key(LIMIT), await ledger.new_key(LIMIT)
    id_ = await state(ledger, owner, pool)
    # An expired one is resolved by whoever meets it: that is not the other's doing.
    await ledger.one(reserve(ledger.id(), owner, 101))
    before = await ledger.fetch("SELECT * FROM reservations WHERE id = $1", id_)
    balances = await ledger.balances("key", owner)

    for text in ("extend 60", "settle 30", "settle 31", "void"):
        outcome = await ledger.one(operation_of(text, id_, other, pool))
        assert "RESERVATION_NOT_YOURS" == told(outcome)

    assert before == await ledger.fetch("SELECT * FROM reservations WHERE id = $1", id_)
    assert balances == await ledger.balances("key", owner)
    assert (0, 0, 0) == await ledger.balances("key", other)


async def test_an_operation_on_an_id_too_old_changes_nothing(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    old = ledger.id()
    await ledger.advance(timedelta(days=7, seconds=1))

    answers = [
        told(await ledger.one(operation))
        for operation in (reserve(old, key_id), extend(old, 5), settle(old, 5), void(old))
    ]

    assert answers == ["RESERVATION_ID_TOO_OLD", *["RESERVATION_UNKNOWN"] * 3]
    assert await ledger.balances("key", key_id) == (0, 0, 0)


async def test_a_known_id_is_remembered_however_old_it_is(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = await held(ledger, key_id, "paid")
    await ledger.advance(timedelta(days=60))

    assert told(await ledger.one(reserve(id_, key_id, 40))) == "ok"
    assert told(await ledger.one(settle(id_, 30))) == "ok"
    assert await ledger.balances("key", key_id) == (30, 0, 0)


async def test_an_id_from_far_ahead_is_refused(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    ahead = ledger.id()
    await ledger.advance(-timedelta(days=1, seconds=1))

    assert told(await ledger.one(reserve(ahead, key_id))) == "RESERVATION_ID_IN_FUTURE"
    assert await ledger.balances("key", key_id) == (0, 0, 0)


async def test_one_batch_may_not_hold_an_id_twice(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = ledger.id()
    async with ledger.database.connection() as connection:
        with pytest.raises(Exception, match="an id is in the batch twice"):
            await connection.fetch(
                "SELECT apply_batch(ARRAY[u.o, u.o], 1000) FROM (SELECT"
                " ROW(1, 'void', $1::uuid, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,"
                " NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::ledger_operation"
                " AS o) AS u",
                id_,
            )
    assert told(await ledger.one(reserve(id_, key_id))) == "ok"
