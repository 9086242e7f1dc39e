"""Reconciliations that break off, run twice at once, or meet routers that settle meanwhile."""

import asyncio
import random
from collections.abc import Callable
from datetime import date

import pytest

from penstock.core import errors
from penstock.core.clock import SystemClock
from penstock.quota.batcher import Batcher
from penstock.quota.ledger import Answer, Operation
from penstock.quota.reconcile import reconciler
from penstock.quota.reconcile.store import Period, ReconcileStore
from penstock.quota.store.adjust_store import AdjustStore
from support.cancelled import cancelled_at_each_await
from support.ledger import Ledger, settle, told
from support.reconciliation import (
    BOUND,
    BY_ACCOUNTANT,
    World,
    drifts,
    handler,
    messages,
    options,
    random_world,
    reconcile,
    row,
)
from support.wait import until


class Meddled:
    """The ledger's batches, with something done before or after each settle."""

    def __init__(self, ledger: Ledger, before: Callable, after: Callable | None = None) -> None:
        self._inner = Batcher(ledger.store, SystemClock())
        self._before, self._after = before, after

    async def apply(self, operation: Operation) -> Answer:
        await self._before(operation)
        answer = await self._inner.apply(operation)
        if self._after is not None:
            await self._after(operation)
        return answer


class Broken(Exception):
    """The process ends here."""


@pytest.mark.parametrize("seed", range(8))
async def test_a_run_that_broke_off_is_repeated_to_the_same_end(
    ledger: Ledger, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a random settle or adjustment, before or after it was made; three times in a row."""
    monkeypatch.setattr(reconciler, "PAGE_ATTEMPTS", 3)
    day, chance = ledger.now.date(), random.Random(seed)
    world = await random_world(ledger, seed, attempts=60)
    left = [0]

    async def breaks(*_: object) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise Broken

    async def nothing(*_: object) -> None:
        return

    adjust = AdjustStore.adjust
    early = chance.random() < 0.5

    async def meddled(self: AdjustStore, *arguments: object) -> object:
        if early:
            await breaks()
        found = await adjust(self, *arguments)  # type: ignore[arg-type]
        if not early:
            await breaks()
        return found

    monkeypatch.setattr(AdjustStore, "adjust", meddled)
    apply = Meddled(ledger, breaks) if early else Meddled(ledger, nothing, breaks)
    for _ in range(3):
        left[0] = chance.randint(1, 6)
        with pytest.raises(Broken):
            await reconcile(ledger, world.export(), day, world.today, apply=apply)
        assert (await ledger.audit()).ok
    monkeypatch.setattr(AdjustStore, "adjust", adjust)
    report = await reconcile(ledger, world.export(), day, world.today)
    assert {} == drifts(report)
    assert (sum(world.billed.values()), 0) == (await world.standing())[:2]
    (unfinished,) = await ledger.fetch(
        "SELECT count(*) AS n FROM reconciliations WHERE finished_at IS NULL"
    )
    assert 3 == unfinished["n"]


async def test_the_same_parts_whether_it_broke_off_or_not(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "PAGE_ATTEMPTS", 2)
    day = ledger.now.date()
    world = World(ledger)
    key_id = await ledger.new_key(None)
    ids = [await world.lost(key_id, 101 * n) for n in range(7)]
    await world.next_day()
    calls = [0]

    async def breaks(_: object) -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise Broken

    with pytest.raises(Broken):
        await reconcile(ledger, world.export(), day, world.today, apply=Meddled(ledger, breaks))
    await reconcile(ledger, world.export(), day, world.today)
    # 2121 in the proportion of seven equal bounds.
    assert [303] * 7 == await world.amounts(*sorted(ids))


async def test_two_at_once_of_one_provider_are_refused(ledger: Ledger) -> None:
    day = ledger.now.date()
    world = await random_world(ledger, 1, attempts=24)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def waits(_: object) -> None:
        entered.set()
        await go_on.wait()

    first = asyncio.create_task(
        reconcile(ledger, world.export(), day, world.today, apply=Meddled(ledger, waits))
    )
    async with asyncio.timeout(20):
        await entered.wait()
    with pytest.raises(errors.FailedPrecondition) as caught:
        await reconcile(ledger, world.export(), day, world.today)
    assert "RECONCILIATION_RUNNING" == caught.value.reason
    go_on.set()
    assert {} == drifts(await first)
    # Its lock is free again.
    await reconcile(ledger, world.export(), day, world.today)


async def test_the_lock_is_free_after_a_client_went_away(ledger: Ledger) -> None:
    day = ledger.now.date()
    world = await random_world(ledger, 1, attempts=24)
    sent = messages(options(day, world.today), world.export(), size=1)
    answers = handler(ledger).reconcile(sent, BY_ACCOUNTANT)
    await anext(answers)
    await answers.aclose()
    assert {} == drifts(await reconcile(ledger, world.export(), day, world.today))


async def test_a_router_that_settles_late_meanwhile_is_counted_as_exact(ledger: Ledger) -> None:
    day = ledger.now.date()
    world = World(ledger)
    key_id = await ledger.new_key(None)
    first, second, third = sorted([await world.lost(key_id, c) for c in (200, 300, 400)])
    await world.next_day()
    done = []

    async def router(operation: Operation) -> None:
        if not done:
            done.append(1)
            assert told(await ledger.one(settle(second, 650))) == "ok"

    report = await reconcile(
        ledger, [row(day, "gpt-4o-mini", 900)], day, world.today, apply=Meddled(ledger, router)
    )
    assert {} == drifts(report)
    assert [125, 650, 125] == await world.amounts(first, second, third)
    assert (900, 0) == (await world.standing())[:2]


async def test_a_day_is_read_in_pages(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    day = ledger.now.date()
    worlds = await random_world(ledger, 5, attempts=45)
    monkeypatch.setattr(reconciler, "PAGE_ATTEMPTS", 2)
    assert {} == drifts(await reconcile(ledger, worlds.export(), day, worlds.today))
    paged = await ledger.fetch("SELECT id, posted + adjusted AS a FROM reservations ORDER BY id")
    monkeypatch.setattr(reconciler, "PAGE_ATTEMPTS", 256)
    await reconcile(ledger, worlds.export(), day, worlds.today)
    at_once = await ledger.fetch("SELECT id, posted + adjusted AS a FROM reservations ORDER BY id")
    assert at_once == paged


async def test_grants_get_back_what_was_not_billed(ledger: Ledger) -> None:
    day = ledger.now.date()
    world = World(ledger)
    key_id = await ledger.new_key(None)
    grant_id = await ledger.grant("key", key_id, 2 * BOUND + 500)
    for cost in (100, 200):
        await world.cancelled(key_id, cost)
    await world.lost(key_id, 600)
    await world.next_day()
    await ledger.store.sweep()
    assert (2 * BOUND, 0, 500, 0) == await ledger.credit(grant_id)
    await reconcile(ledger, world.export(), day, world.today)
    # 300 each of three; the grant had covered half of the last one, and pays for that first.
    assert (900, 0, 0, 0) == await ledger.credit(grant_id)
    assert (900, 0) == (await world.standing())[:2]
    await reconcile(ledger, [row(day, "gpt-4o-mini", 2_700)], day, world.today)
    assert (2_300, 0, 0, 0) == await ledger.credit(grant_id)


async def bad(ledger: Ledger, first: object, rows: list, **changes: object) -> str:
    standing = await ledger.fetch("SELECT count(*) AS n FROM entries")
    with pytest.raises(errors.PenstockError) as caught:
        async for _ in handler(ledger).reconcile(messages(first, rows), BY_ACCOUNTANT):
            pass
    assert standing == await ledger.fetch("SELECT count(*) AS n FROM entries")
    assert [] == await ledger.fetch("SELECT 1 FROM reconciliations")
    return caught.value.reason


async def test_what_is_faulty_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    today = ledger.now.date()
    day, before = date(2026, 11, 22), date(2026, 11, 20)
    good = options(before, day)
    at_noon = options(before, day)
    at_noon.since.seconds += 43_200
    without_amount = row(before, "m", 1)
    without_amount.ClearField("amount_nano_usd")
    account = {"project": "p", "account_id": "team_999999"}
    cases = [
        ("UNTIL_INVALID", options(before, today.replace(day=today.day + 1)), []),
        ("UNTIL_INVALID", options(day, day), []),
        ("UNTIL_INVALID", options(date(2024, 1, 1), day), []),
        ("SINCE_INVALID", at_noon, []),
        ("PROVIDER_INVALID", options(before, day), []),
        ("TEAM_UNKNOWN", options(before, day, accounts=[account]), []),
        ("DAY_INVALID", good, [row(day, "m", 1)]),
        ("AMOUNT_NEGATIVE", good, [row(before, "m", -1)]),
        ("AMOUNT_TOO_LARGE", good, [row(before, "m", 10**18 + 1)]),
        ("AMOUNT_TOO_LARGE", good, [row(before, "m", 10**18)] * 10),
        ("AMOUNT_MISSING", good, [without_amount]),
        ("ROWS_INVALID", good, [row(before, "", 1)]),
        ("ROWS_INVALID", good, [row(before, "m", 1, requests=-1)]),
    ]
    cases[4][1].provider = ""
    found = [await bad(ledger, first, rows) for _, first, rows in cases]
    assert [reason for reason, _, _ in cases] == found


async def test_the_first_message_holds_the_options(ledger: Ledger) -> None:
    async def none_first():
        async for message in messages(options(date(2026, 11, 1), date(2026, 11, 2)), []):
            message.ClearField("options")
            yield message

    with pytest.raises(errors.InvalidRequest) as caught:
        await anext(handler(ledger).reconcile(none_first(), BY_ACCOUNTANT))
    assert "OPTIONS_MISSING" == caught.value.reason


async def test_one_that_is_cancelled_at_any_moment_leaves_no_lock_and_no_setting(
    ledger: Ledger,
) -> None:
    day = ledger.now.date()

    async def opens() -> None:
        async with ReconcileStore.opened(ledger.database, Period("openai", day, day)):
            pass

    async def is_free() -> bool:
        return not await ledger.fetch("SELECT FROM pg_locks WHERE locktype = 'advisory'")

    async for _ in cancelled_at_each_await(opens):
        await until(is_free)
        assert [("10s",)] == [tuple(row) for row in await ledger.fetch("SHOW statement_timeout")]
