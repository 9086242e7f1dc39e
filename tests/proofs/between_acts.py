"""What a batch does, and what another commits in the midst of it, in a small world of its own."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from msgspec.structs import replace

from penstock.quota.budget import BudgetWish
from penstock.quota.ledger import Operation, Reserve, Void
from penstock.quota.store.ledger_store import Outcome
from proofs.router_actor import seeded_uuid7
from support.audited import AccountModel, BudgetModel, GrantModel, WorldModel
from support.auditor import Auditor, Verdict
from support.configured import enter_settings
from support.ledger import BY_TEST, START, Ledger, cache_hit, extend, reserve, settle, void

ACCOUNTS = 8
SETUP_AT = START + timedelta(seconds=5)
LATER = timedelta(seconds=60)
"""After the set-up: what was held for half a minute is abandoned, and a new minute has begun."""
_SOON = timedelta(seconds=90)
"""A grant ends so long after the set-up: within the leap of a clock, not before it."""
_REVOKE = "UPDATE api_keys SET revoked_at = ledger_now() WHERE account_id = $1"


@dataclass(frozen=True)
class Place:
    """A world, and the ids of its reservations by what they are."""

    rng: random.Random
    world: WorldModel
    key: int
    teammate: int
    stranger: int
    provider: str
    ids: dict[str, str]

    @property
    def org(self) -> int:
        return self.world.accounts[self.key].org_id or 0

    @property
    def strange_org(self) -> int:
        return self.world.accounts[self.stranger].org_id or 0

    def paid(self, name: str, key_id: int, amount: int, ttl_ms: int = 180_000) -> Reserve:
        """Its id is new under each name."""
        return reserve(self.id(name), key_id, amount, provider=self.provider, ttl_ms=ttl_ms)

    def local(self, name: str, key_id: int, amount: int, ttl_ms: int = 180_000) -> Reserve:
        paid = self.paid(name, key_id, amount, ttl_ms)
        return replace(paid, pool="local", provider="local")

    def name_of(self, operation: Operation) -> str:
        (name,) = (n for n, id_ in self.ids.items() if id_ == operation.reservation_id)
        amount = "" if isinstance(operation, Void) else f" {operation.amount_nano_usd}"
        return f"{type(operation).__name__.lower()} {name!r}{amount}"

    def id(self, name: str) -> str:
        return self.ids.setdefault(name, seeded_uuid7(self.rng, SETUP_AT + LATER))


def make_place(rng: random.Random, ids: Sequence[int]) -> Place:
    """Two organisations at one provider's pool. Of most budgets there is room for one attempt."""
    pool, org, team, key, teammate, org2, team2, stranger = ids
    world = WorldModel()
    world.accounts = {
        pool: AccountModel("pool"),
        org: AccountModel("org", prepaid=rng.random() < 0.4),
        team: AccountModel("team", org),
        key: AccountModel("key", org, team),
        teammate: AccountModel("key", org, team),
        org2: AccountModel("org"),
        team2: AccountModel("team", org2),
        stranger: AccountModel("key", org2, team2),
    }
    world.pools = {f"provider-{pool}": pool}
    world.budgets = [
        BudgetModel(pool, "nano_usd", "total", rng.choice([90, 100, 200, None])),
        BudgetModel(pool, "in_flight", "total", 3),
        BudgetModel(org, "nano_usd", "day", rng.choice([100, 300])),
        BudgetModel(team, "requests", "minute", rng.choice([1, 2, 9])),
        BudgetModel(key, "nano_usd", "total", rng.choice([85, 100, 100, 150])),
        BudgetModel(teammate, "nano_usd", "minute", 50),
        BudgetModel(org2, "nano_usd", "total", 60),
    ]
    world.grants = [
        GrantModel(org, 25, START, SETUP_AT + _SOON),
        GrantModel(team, rng.choice([30, 60]), START, START + timedelta(days=30)),
    ]
    return Place(rng, world, key, teammate, stranger, f"provider-{pool}", {})


def set_up(place: Place) -> list[list[Operation]]:
    """Batches; then `LATER` goes by."""
    gone_ms = 30_000
    done = place.paid("done", place.key, 10)
    return [
        [done],
        [settle(done.reservation_id, 5), place.local("mine", place.key, 10)],
        [
            place.paid("old", place.key, 20, gone_ms),
            place.local("gone", place.teammate, 10, gone_ms),
            place.paid("strange", place.stranger, 20, gone_ms),
            place.paid("held", place.key, 30),
        ],
    ]


def some_batch(place: Place) -> "Act":
    """One to three operations on what is there, and on what is new."""
    rng = place.rng
    makers: list[Callable[[], Operation]] = [
        lambda: place.paid("new", place.key, rng.choice([0, 5, 25, 35])),
        lambda: place.paid("new", place.key, rng.choice([0, 5, 25, 35])),
        lambda: place.paid("another", rng.choice([place.key, place.teammate]), 15),
        lambda: place.local("third", place.teammate, 20),
        lambda: cache_hit(place.id("hit"), place.key),
        lambda: settle(place.id("held"), rng.choice([0, 20, 30, 45])),
        lambda: settle(place.id("held"), 20),
        lambda: settle(place.id("old"), rng.choice([15, 25])),
        lambda: settle(place.id("done"), 5),
        lambda: settle(place.id("new"), 5),
        lambda: void(place.id("held")),
        lambda: void(place.id("old")),
        lambda: void(place.id("gone")),
        lambda: void(place.id("new")),
        lambda: extend(place.id("held"), rng.choice([30, 45, 80]), 10, 240_000),
        lambda: extend(place.id("held"), 45, 0, 240_000),
        lambda: extend(place.id("mine"), rng.choice([20, 60]), 0, 240_000),
        lambda: extend(place.id("new"), 30, 0, 240_000),
    ]
    batch: dict[str, Operation] = {}
    for maker in rng.sample(makers, rng.choice([1, 1, 2, 3])):
        operation = maker()
        batch.setdefault(operation.reservation_id, operation)
    return a_batch(place, *batch.values())


@dataclass(frozen=True)
class Act:
    """A batch of operations, or (`change`: what it is to the auditor) something else."""

    name: str
    do: Callable[[Ledger], Awaitable[list[Outcome]]]
    operations: Sequence[Operation] = ()
    change: Callable[[Auditor], list[Verdict]] | None = None


def some_act(place: Place) -> Act:
    """At times of the stranger, mostly another batch or a change."""
    rng = place.rng
    if rng.random() < 0.45:
        return some_batch(place)
    if rng.random() < 0.15:
        return a_batch(place, place.paid("theirs", place.stranger, rng.choice([10, 30])))
    acts = (_limit, _close, _new_budget, _revoke, _account, _grant, _end_grant, _leap, _sweep)
    return rng.choice(acts)(place)


def a_batch(place: Place, *operations: Operation) -> Act:
    async def do(ledger: Ledger) -> list[Outcome]:
        return await ledger.apply(*operations)

    return Act(", ".join(place.name_of(o) for o in operations), do, operations)


def _change(
    name: str,
    do: Callable[[Ledger], Awaitable[object]],
    model: Callable[[Auditor], object],
) -> Act:
    async def done(ledger: Ledger) -> list[Outcome]:
        await do(ledger)
        return []

    def modelled(auditor: Auditor) -> list[Verdict]:
        model(auditor)
        return []

    return Act(name, done, change=modelled)


def _some_budget(place: Place) -> BudgetModel:
    """Of the first key's path."""
    theirs = (place.stranger, place.strange_org, place.teammate)
    return place.rng.choice([b for b in place.world.budgets if b.account_id not in theirs])


def _of(auditor: Auditor, budget: BudgetModel) -> BudgetModel:
    """An auditor's world is a copy."""
    return next(b for b in auditor.world.budgets if b.id == budget.id)


def _limit(place: Place) -> Act:
    budget = _some_budget(place)
    limit = place.rng.choice([0, 2, 50, 250, None])
    wish = BudgetWish(
        account_kind=place.world.accounts[budget.account_id].kind,
        account_id=budget.account_id,
        unit=budget.unit,
        window=None,
        name=f"b-{budget.id}",
        time_zone=None,
        limit=limit,
        scope=None,
        soft_percents=(),
    )
    return _change(
        f"limit {limit} on {budget.unit} of {wish.account_kind}",
        lambda ledger: ledger.budgets.set_budget(BY_TEST, wish),
        lambda auditor: setattr(_of(auditor, budget), "limit", limit),
    )


def _close(place: Place) -> Act:
    return close_of(place, _some_budget(place))


def close_of(place: Place, budget: BudgetModel) -> Act:
    money = budget.unit == "nano_usd"
    kind = place.world.accounts[budget.account_id].kind
    return _change(
        f"close {budget.unit} of {kind}",
        lambda ledger: ledger.budgets.close_budget(BY_TEST, budget.id, money=money),
        lambda auditor: _of(auditor, budget).close(),
    )


def _new_budget(place: Place) -> Act:
    made: list[int] = []
    limit = place.rng.choice([0, 10])

    async def do(ledger: Ledger) -> None:
        made.append(await ledger.budget("key", place.key, limit, "hour", name="new"))

    def model(auditor: Auditor) -> None:
        # Known by its id only once it is there: the auditor is asked after the ledger.
        auditor.world.budgets.append(BudgetModel(place.key, "nano_usd", "hour", limit, id=made[0]))

    return _change(f"a new budget of {limit}", do, model)


def _revoke(place: Place) -> Act:
    async def do(ledger: Ledger) -> None:
        # As AccountStore does; a world's keys have no secrets to revoke.
        async with ledger.database.connection() as connection, connection.transaction():
            await connection.execute(_REVOKE, place.key)
            await enter_settings(connection, [place.key])

    return _change(
        "revoke the key",
        do,
        lambda auditor: setattr(auditor.world.accounts[place.key], "revoked", True),
    )


def _account(place: Place) -> Act:
    what = place.rng.choice(["suspended", "prepaid"])
    return _change(
        f"organisation {what}",
        lambda ledger: ledger.accounts.update_account(BY_TEST, "org", place.org, **{what: True}),
        lambda auditor: setattr(auditor.world.accounts[place.org], what, True),
    )


def _grant(place: Place) -> Act:
    made: list[int] = []
    amount = place.rng.choice([5, 50])

    async def do(ledger: Ledger) -> None:
        made.append(await ledger.grant("org", place.org, amount))

    def model(auditor: Auditor) -> None:
        auditor.world.grants.append(GrantModel(place.org, amount, START, id=made[0]))

    return _change(f"grant {amount}", do, model)


def _end_grant(place: Place) -> Act:
    return end_of(place.rng.choice(place.world.grants))


def end_of(grant: GrantModel) -> Act:
    def model(auditor: Auditor) -> None:
        (one,) = (g for g in auditor.world.grants if g.id == grant.id)
        one.ends_at = auditor.now
        one.lapsed += max(one.rest, 0)

    return _change("end a grant", lambda ledger: ledger.grants.end_grant(BY_TEST, grant.id), model)


def _leap(place: Place) -> Act:
    """The clock goes on: for a second, into the next minute, past the end of holds and a grant."""
    delta = timedelta(seconds=place.rng.choice([1, 58, 60, 150]))
    sweeps = place.rng.random() < 0.5

    async def do(ledger: Ledger) -> None:
        await ledger.advance(delta)
        if sweeps:
            await ledger.store.sweep()

    def model(auditor: Auditor) -> None:
        auditor.advance(delta)
        if sweeps:
            auditor.sweep()

    return _change(f"{delta.seconds} seconds{', a sweep' if sweeps else ''}", do, model)


def _sweep(place: Place) -> Act:
    del place
    return _change("a sweep", lambda ledger: ledger.store.sweep(), Auditor.sweep)
