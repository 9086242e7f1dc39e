"""What is left on a path, and who is told when it changes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import asyncpg
import pytest

from penstock.core import errors
from penstock.quota.account import AccountKind
from penstock.quota.balances import Balances
from penstock.quota.budget import Scope
from penstock.quota.store.balance_store import BalanceStore
from penstock.quota.v1 import quota_pb2
from support.admin import OPERATOR, fails
from support.ledger import START, Ledger, reserve, settle, told


@pytest.fixture
def balances(ledger: Ledger) -> Balances:
    return Balances(BalanceStore(ledger.database))


async def test_a_keys_balance_is_that_of_its_whole_path(ledger: Ledger, balances: Balances) -> None:
    org, team, key = await ledger.new_path(commercial=True)
    pool, (provider,) = await ledger.pool()
    await ledger.budget("org", org, 1000, "month")
    await ledger.budget("team", team, None)
    await ledger.budget("key", key, 50, soft_percents=(50, 100))
    closed = await ledger.budget("key", key, 7, "day")
    await ledger.budgets.close_budget(OPERATOR, closed, money=True)
    await ledger.budget("key", key, 3, "minute", unit="requests")
    await ledger.budget("pool", pool, 9, "minute", unit="requests")
    later = await ledger.grant("org", org, 100, ends_in=timedelta(days=2))
    sooner = await ledger.grant("team", team, 100, ends_in=timedelta(days=1))
    await ledger.grant("key", key, 100, starts_in=timedelta(days=1))
    await ledger.grant("key", key, 100, commercial_use=False)
    await ledger.grant("pool", pool, 100)
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(reserve(id_, key, 30, provider=provider)))
    await ledger.one(settle(id_, 10))
    assert "ok" == told(await ledger.one(reserve(ledger.id(), key, 15, provider=provider)))

    balance = await balances.get(quota_pb2.GetBalanceRequest(account_id=f"key_{key}"))

    assert [
        (f"org_{org}", "month", 975),
        (f"team_{team}", "total", None),
        (f"key_{key}", "total", 25),
    ] == [
        (b.account_id, b.window, b.remaining_nano_usd if b.HasField("remaining_nano_usd") else None)
        for b in balance.budgets
    ]
    own = balance.budgets[-1]
    assert (50, 10, 15, 0, [50, 100]) == (
        own.limit_nano_usd,
        own.posted_nano_usd,
        own.held_nano_usd,
        own.suspense_nano_usd,
        list(own.soft_percents),
    )
    assert [(f"grant_{sooner}", 75), (f"grant_{later}", 100)] == [
        (g.grant_id, g.remaining_nano_usd) for g in balance.grants
    ]
    assert [("requests", "minute", 3, 2, f"key_{key}")] == [
        (r.unit, r.window, r.limit, r.used, r.account_id) for r in balance.rates
    ]
    assert START + timedelta(minutes=1) == balance.rates[0].resets_at.ToDatetime(START.tzinfo)
    assert START == balance.at.ToDatetime(START.tzinfo)
    credit = await balances.get(quota_pb2.GetBalanceRequest(account_id=f"pool_{pool}"))
    assert ([75], [2]) == (
        [g.remaining_nano_usd for g in credit.grants],
        [r.used for r in credit.rates],
    )
    alone = await balances.get(quota_pb2.GetBalanceRequest(account_id=f"org_{org}"))
    assert [f"org_{org}"] == [b.account_id for b in alone.budgets]


async def test_credit_that_cannot_be_used_is_told_with_why(
    ledger: Ledger, balances: Balances
) -> None:
    org, team, key = await ledger.new_path(commercial=True)
    await ledger.budget("key", key, None)
    day = timedelta(days=1)
    small = Scope(models=("small*",), tags={"job": "x"})
    usable = await ledger.grant("key", key, 10, ends_in=9 * day, scope=small)
    spent = await ledger.grant("team", team, 10, ends_in=3 * day)
    ended = await ledger.grant("org", org, 10, ends_in=day / 2)
    free = await ledger.grant("org", org, 10, ends_in=5 * day, commercial_use=False)
    later = await ledger.grant("key", key, 10, starts_in=2 * day, ends_in=4 * day)
    other = await ledger.grant("key", (await ledger.new_path())[2], 10, starts_in=2 * day)
    id_ = ledger.id()
    assert "ok" == told(await ledger.one(reserve(id_, key, 20)))
    await ledger.one(settle(id_, 20))
    await ledger.advance(day)

    balance = await balances.get(quota_pb2.GetBalanceRequest(account_id=f"key_{key}"))

    states = {g.grant_id: g.state for g in (*balance.grants, *balance.unusable_grants)}
    expected = {usable: "usable", free: "non_commercial", later: "not_started"}
    expected |= {spent: "used_up", ended: "used_up"}
    assert {f"grant_{number}": state for number, state in expected.items()} == states
    assert f"grant_{other}" not in states
    (grant,) = balance.grants
    assert (["small*"], {"job": "x"}, []) == (grant.models, dict(grant.tags), grant.providers)
    assert [free, later, spent, ended] == [
        int(g.grant_id.removeprefix("grant_")) for g in balance.unusable_grants
    ]
    narrow = await ledger.budget("key", key, 7, "day", scope=small)
    await ledger.budget("key", key, 7, "day", unit="requests", scope=small)
    balance = await balances.get(quota_pb2.GetBalanceRequest(account_id=f"key_{key}"))
    scopes = {b.budget_id: (list(b.models), dict(b.tags)) for b in balance.budgets}
    assert (["small*"], {"job": "x"}) == scopes.pop(f"budget_{narrow}")
    assert [([], {})] == list(scopes.values())
    assert [["small*"]] == [list(rate.models) for rate in balance.rates]
    alone = await balances.get(quota_pb2.GetBalanceRequest(account_id=f"team_{team}"))
    assert ["used_up"] == [g.state for g in alone.unusable_grants]


async def test_credit_that_has_ended_with_something_left_is_told_as_ended(
    ledger: Ledger, balances: Balances
) -> None:
    org, _, _ = await ledger.new_path()
    await ledger.grant("org", org, 10, ends_in=timedelta(days=1), commercial_use=False)
    asked = quota_pb2.GetBalanceRequest(account_id=f"org_{org}")
    assert ["usable"] == [g.state for g in (await balances.get(asked)).grants]
    await ledger.advance(timedelta(days=1))
    balance = await balances.get(asked)
    assert ([], ["ended"]) == (list(balance.grants), [g.state for g in balance.unusable_grants])


@pytest.mark.parametrize(
    ("account_id", "reason"),
    [
        ("", "INVALID_ARGUMENT ACCOUNT_ID_INVALID"),
        ("budget_1", "INVALID_ARGUMENT ACCOUNT_ID_INVALID"),
        ("key_99999999", "NOT_FOUND KEY_UNKNOWN"),
        ("org_99999999", "NOT_FOUND ORG_UNKNOWN"),
    ],
)
async def test_an_unknown_account_has_no_balance(
    balances: Balances, account_id: str, reason: str
) -> None:
    request = quota_pb2.GetBalanceRequest(account_id=account_id)
    assert reason == await fails(balances.get(request))
    watch = quota_pb2.WatchBalanceRequest(account_id=account_id)
    assert reason == await fails(anext(balances.watch(watch)))


@pytest.mark.parametrize("interval_ms", [-1, 99, 60_001])
async def test_a_faulty_interval_is_refused(
    ledger: Ledger, balances: Balances, interval_ms: int
) -> None:
    key = await ledger.new_key(10)
    watch = quota_pb2.WatchBalanceRequest(account_id=f"key_{key}", interval_ms=interval_ms)
    expected = "INVALID_ARGUMENT INTERVAL_MS_INVALID"
    assert expected == await fails(anext(balances.watch(watch)))


async def watch(balances: Balances, key: int) -> AsyncIterator[int]:
    request = quota_pb2.WatchBalanceRequest(account_id=f"key_{key}", interval_ms=100)
    async for balance in balances.watch(request):
        yield balance.budgets[0].remaining_nano_usd


class Counting(BalanceStore):
    """Says how often it was asked."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.database)
        self.asked = 0
        self.again = asyncio.Event()

    async def balance(self, kind: AccountKind, account_id: int) -> Sequence[asyncpg.Record]:
        rows = await super().balance(kind, account_id)
        self.asked += 1
        self.again.set()
        return rows


async def test_a_watcher_is_told_of_changes_and_of_nothing_else(ledger: Ledger) -> None:
    key = await ledger.new_key(100)
    store = Counting(ledger)
    balances = Balances(store)
    following = watch(balances, key)

    assert 100 == await anext(following)
    following_next = asyncio.ensure_future(anext(following))
    while store.asked < 4:  # one query a tick, and no word of it: only the time has changed
        await ledger.advance(timedelta(seconds=1))
        store.again.clear()
        await store.again.wait()
        assert not following_next.done()
    await ledger.one(reserve(ledger.id(), key, 30))
    async with asyncio.timeout(5):
        assert 70 == await following_next
    await following.aclose()


async def test_a_drain_ends_the_watches_at_once(ledger: Ledger, balances: Balances) -> None:
    key = await ledger.new_key(100)
    request = quota_pb2.WatchBalanceRequest(account_id=f"key_{key}", interval_ms=60_000)
    following = balances.watch(request)
    await anext(following)
    ended = asyncio.ensure_future(anext(following, None))
    await asyncio.sleep(0)

    balances.end_streams()

    async with asyncio.timeout(5):
        assert await ended is None
    # Who comes now gets an answer and no more.
    assert 1 == len([balance async for balance in balances.watch(request)])


async def test_only_so_many_watch(
    ledger: Ledger, balances: Balances, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.quota.balances.WATCHES_MAX", 1)
    key = await ledger.new_key(100)
    first = watch(balances, key)
    await anext(first)
    with pytest.raises(errors.Unavailable) as raised:
        await anext(watch(balances, key))
    assert "WATCHES_TOO_MANY" == raised.value.reason


async def test_a_scope_does_not_hide_a_budget_from_the_balance(
    ledger: Ledger, balances: Balances
) -> None:
    key = await ledger.new_key(100)
    await ledger.budget("key", key, 5, "day", scope=Scope(models=("only-this",)))
    balance = await balances.get(quota_pb2.GetBalanceRequest(account_id=f"key_{key}"))
    assert ["day", "total"] == [budget.window for budget in balance.budgets]
