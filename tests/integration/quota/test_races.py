"""Many at once on the same rows, over connections of their own (LEDGER, I1 to I4).

From several processes: test_concurrency, and `make prove`.
"""

import asyncio

from penstock.core import errors
from penstock.quota.ledger import Operation
from penstock.quota.store.ledger_store import Outcome
from support.ledger import Ledger, extend, reserve, settle, told, void


async def test_fifty_tasks_of_five_on_a_hundred_are_exactly_twenty(ledger: Ledger) -> None:
    for _ in range(5):
        key_id = await ledger.new_key(100)

        outcomes = await asyncio.gather(
            *(ledger.one(reserve(ledger.id(), key_id, 5)) for _ in range(50))
        )

        told_ = [told(o) for o in outcomes]
        assert (20, 30) == (told_.count("ok"), told_.count("BUDGET_EXCEEDED"))
        assert await ledger.balances("key", key_id) == (0, 100, 0)


async def test_the_last_of_a_pools_credit_goes_to_one_of_many_organisations(
    ledger: Ledger,
) -> None:
    pool_id, (provider,) = await ledger.pool(prepaid=True)
    credit = await ledger.grant("pool", pool_id, 100)
    keys = [await ledger.new_key(None) for _ in range(5)]

    outcomes = await asyncio.gather(
        *(ledger.one(reserve(ledger.id(), k, 5, provider=provider)) for k in keys * 10)
    )

    told_ = [told(o) for o in outcomes]
    assert (20, 30) == (told_.count("ok"), told_.count("CREDIT_EXHAUSTED"))
    assert await ledger.credit(credit) == (0, 100, 0, 0)


async def test_extends_and_reserves_at_once_share_what_is_left(ledger: Ledger) -> None:
    key_id = await ledger.new_key(1000)
    ids = [ledger.id() for _ in range(20)]
    await ledger.apply(*(reserve(id_, key_id, 20) for id_ in ids))

    outcomes = await asyncio.gather(
        *(ledger.one(extend(id_, 40)) for id_ in ids),
        *(ledger.one(reserve(ledger.id(), key_id, 20)) for _ in range(40)),
    )

    assert [told(o) for o in outcomes].count("ok") == 30
    assert await ledger.balances("key", key_id) == (0, 1000, 0)


async def test_the_same_reserve_from_many_at_once_holds_once(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    id_ = ledger.id()

    outcomes = await asyncio.gather(*(ledger.one(reserve(id_, key_id, 40)) for _ in range(10)))

    assert {"ok"} == {told(o) for o in outcomes}
    assert await ledger.balances("key", key_id) == (0, 40, 0)


async def test_one_id_from_two_organisations_at_once_holds_for_one(ledger: Ledger) -> None:
    first, second = await ledger.new_key(100), await ledger.new_key(100)
    for _ in range(10):
        id_ = ledger.id()
        outcomes = await asyncio.gather(
            *(_answered(ledger, reserve(id_, key_id, 1)) for key_id in (first, second) * 3)
        )
        assert sorted(told(o) for o in outcomes) == ["RESERVATION_ID_REUSED"] * 3 + ["ok"] * 3


async def _answered(ledger: Ledger, operation: Operation) -> Outcome:
    """As a router asks: again under the same id, until there is a verdict."""
    while True:
        try:
            return await ledger.one(operation)
        except errors.Unavailable:
            continue


async def test_a_settle_and_a_void_at_once_have_one_winner(ledger: Ledger) -> None:
    key_id = await ledger.new_key(1000)
    for _ in range(10):
        id_ = ledger.id()
        await ledger.one(reserve(id_, key_id, 10))
        outcomes = await asyncio.gather(ledger.one(settle(id_, 4)), ledger.one(void(id_)))
        assert sorted(told(o) for o in outcomes) in (
            ["RESERVATION_SETTLED", "ok"],
            ["RESERVATION_VOIDED", "ok"],
        )
