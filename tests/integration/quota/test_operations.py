"""Every operation in every state of a reservation, and every refusal: LEDGER, I1 to I9."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from penstock.quota.ledger import Answer, BudgetRefused
import pytest
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


@pytest.mark.parametrize(("pool", "balances"), [("paid", (0, 5, 40)), ("local", (0, 5, 0))])
async def test_an_abandoned_hold_resolves_in_the_next_reserve_of_its_bucket(
    ledger: Ledger, pool: str, balances: tuple[int, int, int]
) -> None:
    key_id = await ledger.new_key(LIMIT)
    await expired(ledger, key_id, pool)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 5))) == "ok"

    assert balances == await ledger.balances("key", key_id)


async def test_an_abandoned_hold_of_another_key_frees_the_shared_budget(ledger: Ledger) -> None:
    org_id, team_id, first = await ledger.new_path()
    await ledger.budget("org", org_id, 100)
    await ledger.budget("key", first, 100)
    assert told(await ledger.one(reserve(ledger.id(), first, 100, pool="local"))) == "ok"
    second = await _another_key(ledger, team_id)
    assert told(await ledger.one(reserve(ledger.id(), second, 1))) == "BUDGET_EXCEEDED"

    await ledger.advance(timedelta(minutes=2))

    assert told(await ledger.one(reserve(ledger.id(), second, 100))) == "ok"
    assert await ledger.balances("key", first) == (0, 0, 0)


async def test_a_sweep_resolves_without_any_reserve(ledger: Ledger) -> None:
    await ledger.advance(timedelta(days=1))
    await ledger.store.sweep()  # what other tests left behind
    key_id = await ledger.new_key(LIMIT)
    await expired(ledger, key_id, "paid")

    assert await ledger.store.sweep() == 1

    assert await ledger.balances("key", key_id) == (0, 0, 40)
    assert await ledger.store.sweep() == 0


async def test_suspense_counts_against_the_limit(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = await expired(ledger, key_id, "paid")

    assert told(await ledger.one(reserve(ledger.id(), key_id, 61))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(settle(id_, 0))) == "ok"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 61))) == "ok"


@pytest.mark.parametrize("amount", [0, 1])
async def test_an_overage_blocks_further_reserves_even_of_nothing(
    ledger: Ledger, amount: int
) -> None:
    key_id = await ledger.new_key(LIMIT)
    id_ = await held(ledger, key_id, "paid")
    assert told(await ledger.one(settle(id_, 101))) == "ok"

    assert told(await ledger.one(reserve(ledger.id(), key_id, amount))) == "BUDGET_EXCEEDED"


async def test_zero_is_a_limit(ledger: Ledger) -> None:
    key_id = await ledger.new_key(0)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 0))) == "ok"


async def test_no_budget_on_the_whole_path_is_refused(ledger: Ledger) -> None:
    _, _, key_id = await ledger.new_path()

    assert told(await ledger.one(reserve(ledger.id(), key_id, 0))) == "BUDGET_MISSING"


async def test_unlimited_admits_anything_and_has_no_rest(ledger: Ledger) -> None:
    key_id = await ledger.new_key(None)

    answer = await ledger.one(reserve(ledger.id(), key_id, 10**15))

    assert isinstance(answer, Answer)
    assert answer.remaining_nano_usd is None


async def test_a_reserve_holds_every_budget_of_the_path_or_none(ledger: Ledger) -> None:
    org_id, team_id, key_id = await ledger.new_path()
    await ledger.budget("org", org_id, 1000, "month")
    await ledger.budget("org", org_id, 900, "total")
    await ledger.budget("team", team_id, 50)
    await ledger.budget("key", key_id, 80)

    refused_ = await ledger.one(reserve(ledger.id(), key_id, 60))
    answer = await ledger.one(reserve(ledger.id(), key_id, 45))

    assert isinstance(refused_, BudgetRefused)
    refusal = refused_.refusal
    assert ("team", team_id) == (refusal.account_kind, refusal.account_id)
    assert (50, 0, 0, 0, 60) == (
        refusal.limit_nano_usd,
        refusal.posted_nano_usd,
        refusal.held_nano_usd,
        refusal.suspense_nano_usd,
        refusal.requested_nano_usd,
    )
    assert isinstance(answer, Answer)
    assert answer.remaining_nano_usd == 5
    for kind, account_id, window in [
        ("org", org_id, "month"),
        ("org", org_id, "total"),
        ("team", team_id, "total"),
        ("key", key_id, "total"),
    ]:
        assert await ledger.balances(kind, account_id, window) == (0, 45, 0)


async def test_operations_of_a_batch_see_each_other_in_order(ledger: Ledger) -> None:
    key_id = await ledger.new_key(LIMIT)
    first, second, third = (ledger.id() for _ in range(3))

    outcomes = await ledger.apply(
        reserve(first, key_id, 60),
        reserve(second, key_id, 60),
        settle(first, 20),
        reserve(third, key_id, 60),
        reserve(first, key_id, 60),
        void(third),
    )

    assert [told(o) for o in outcomes] == ["ok", "BUDGET_EXCEEDED", "ok", "ok", "ok", "ok"]
    assert isinstance(outcomes[1], BudgetRefused)
    assert outcomes[1].refusal.held_nano_usd == 60
    assert await ledger.balances("key", key_id) == (20, 0, 0)


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
            "UPDATE accounts SET suspended = true"
            " WHERE id = (SELECT org_id FROM accounts WHERE id = $1)",
            "ACCOUNT_SUSPENDED",
        ),
        (
            "UPDATE accounts SET suspended = true"
            " WHERE id = (SELECT team_id FROM accounts WHERE id = $1)",
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
    await ledger.execute("UPDATE accounts SET suspended = false")
    await ledger.execute("UPDATE api_keys SET expires_at = NULL, revoked_at = NULL")
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


async def _another_key(ledger: Ledger, team_id: int) -> int:
    from penstock.quota.account import new_secret
    from support.ledger import OPEN_POLICY

    return (await ledger.accounts.create_key(team_id, "key", OPEN_POLICY, new_secret())).id
