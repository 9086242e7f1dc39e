"""Every operation in every state of a reservation, and every refusal: LEDGER, I1 to I9."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from penstock.quota.ledger import Answer
from support.ledger import Ledger, reserve, settle, told, void

LIMIT = 100


async def held(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, key_id, 40, pool=pool))) == "ok"
    return id_


async def settled(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await held(ledger, key_id, pool)
    assert told(await ledger.one(settle(id_, 30))) == "ok"
    return id_


async def voided(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await held(ledger, key_id, pool)
    assert told(await ledger.one(void(id_))) == "ok"
    return id_


async def expired(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await held(ledger, key_id, pool)
    await ledger.advance(timedelta(minutes=2))
    return id_


async def settled_late(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = await expired(ledger, key_id, pool)
    assert told(await ledger.one(settle(id_, 30))) == "ok"
    return id_


async def refused(ledger: Ledger, key_id: int, pool: str) -> str:
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, key_id, 101, pool=pool))) == "BUDGET_EXCEEDED"
    return id_


async def unknown(ledger: Ledger, key_id: int, pool: str) -> str:
    return ledger.id()


State = Callable[[Ledger, int, str], Awaitable[str]]

# state, operation, answer (reason, or posted/released/overage/late), balances posted/held/suspense.
SCENARIOS: list[tuple[State, str, str, object, tuple[int, int, int]]] = [
    (unknown, "paid", "reserve 40", (0, 0, False, False), (0, 40, 0)),
    (unknown, "paid", "settle 30", "RESERVATION_UNKNOWN", (0, 0, 0)),
    (unknown, "paid", "void", (0, 0, False, False), (0, 0, 0)),
    (held, "paid", "reserve 40", (0, 0, False, False), (0, 40, 0)),
    (held, "paid", "reserve 41", "RESERVATION_ID_REUSED", (0, 40, 0)),
    (held, "paid", "settle 30", (30, 10, False, False), (30, 0, 0)),
    (held, "paid", "settle 40", (40, 0, False, False), (40, 0, 0)),
    (held, "paid", "settle 0", (0, 40, False, False), (0, 0, 0)),
    (held, "paid", "settle 50", (50, 0, True, False), (50, 0, 0)),
    (held, "paid", "settle 150", (150, 0, True, False), (150, 0, 0)),
    (held, "paid", "void", (0, 40, False, False), (0, 0, 0)),
    (settled, "paid", "reserve 40", (30, 10, False, False), (30, 0, 0)),
    (settled, "paid", "reserve 41", "RESERVATION_ID_REUSED", (30, 0, 0)),
    (settled, "paid", "settle 30", (30, 10, False, False), (30, 0, 0)),
    (settled, "paid", "settle 31", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled, "paid", "settle 30 other usage", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled, "paid", "void", "RESERVATION_SETTLED", (30, 0, 0)),
    (voided, "paid", "reserve 41", "RESERVATION_ID_REUSED", (0, 0, 0)),
    (voided, "paid", "settle 30", "RESERVATION_VOIDED", (0, 0, 0)),
    (voided, "paid", "void", (0, 40, False, False), (0, 0, 0)),
    (expired, "paid", "settle 30", (30, 10, False, True), (30, 0, 0)),
    (expired, "paid", "settle 0", (0, 40, False, True), (0, 0, 0)),
    (expired, "paid", "settle 70", (70, 0, True, True), (70, 0, 0)),
    (expired, "paid", "void", (0, 40, False, True), (0, 0, 0)),
    (expired, "local", "settle 30", (30, 0, False, True), (30, 0, 0)),
    (expired, "local", "void", (0, 0, False, True), (0, 0, 0)),
    (settled_late, "paid", "settle 30", (30, 10, False, True), (30, 0, 0)),
    (settled_late, "paid", "settle 31", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled_late, "paid", "void", "RESERVATION_SETTLED", (30, 0, 0)),
    (settled_late, "local", "settle 30", (30, 0, False, True), (30, 0, 0)),
    (refused, "paid", "reserve 101", "BUDGET_EXCEEDED", (0, 0, 0)),
    (refused, "paid", "reserve 40", "RESERVATION_ID_REUSED", (0, 0, 0)),
    (refused, "paid", "settle 30", "RESERVATION_REFUSED", (0, 0, 0)),
    (refused, "paid", "void", (0, 0, False, False), (0, 0, 0)),
]


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

    name, *rest = text.split()
    match name:
        case "reserve":
            outcome = await ledger.one(reserve(id_, key_id, int(rest[0]), pool=pool))
        case "settle":
            usage = {"completion_tokens": 9} if rest[1:] else {}
            outcome = await ledger.one(settle(id_, int(rest[0]), **usage))
        case _:
            outcome = await ledger.one(void(id_))

    if isinstance(answer, str):
        assert answer == told(outcome)
    else:
        assert isinstance(outcome, Answer), outcome
        given = (outcome.posted_nano_usd, outcome.released_nano_usd, outcome.overage, outcome.late)
        assert answer == given
    assert balances == await ledger.balances("key", key_id)
