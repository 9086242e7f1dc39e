"""A small ledger in which there is something of everything, on a clock that a test moves."""

from dataclasses import dataclass
from datetime import timedelta

from penstock.core.postgres_server import PrivateServer
from support.ledger import START, Ledger, clocked_database, reserve, settle, told, void


@dataclass
class SmallLedger:
    """One key and what was done with it.

    Attributes:
        key_id: With budgets in USD on all levels, limits in requests, tokens and in flight, credit.
        provider: Whose pool has credit and a budget of its own.
        held, suspected: Ids of reservations of 20 each.
    """

    ledger: Ledger
    key_id: int
    provider: str
    held: str
    suspected: str

    async def reserve(self, amount: int = 20, **changes: object) -> str:
        id_ = self.ledger.id()
        options = {"provider": self.provider, "tokens": 30, **changes}
        assert told(await self.ledger.one(reserve(id_, self.key_id, amount, **options))) == "ok"
        return id_

    async def settle(self, id_: str, amount: int) -> None:
        assert told(await self.ledger.one(settle(id_, amount))) == "ok"

    async def spend(self, amount: int) -> str:
        """Reserves 20 and settles."""
        id_ = await self.reserve()
        await self.settle(id_, amount)
        return id_


async def small_ledger(server: PrivateServer) -> SmallLedger:
    """Close its `ledger.database` after use."""
    ledger = await Ledger.open(await clocked_database(server))
    await ledger.set_clock(START)
    org_id, team_id, key_id = await ledger.new_path()
    for kind, account_id in (("org", org_id), ("team", team_id), ("key", key_id)):
        await ledger.budget(kind, account_id, 1_000)
    await ledger.budget("key", key_id, 900, "minute")
    await ledger.budget("key", key_id, 1_000, "hour", unit="requests")
    await ledger.budget("key", key_id, 100_000, "day", unit="tokens")
    await ledger.budget("key", key_id, 50, unit="in_flight")
    await ledger.grant("org", org_id, 70)
    pool_id, (provider,) = await ledger.pool()
    await ledger.budget("pool", pool_id, 5_000, "day")
    await ledger.grant("pool", pool_id, 500)
    small = SmallLedger(ledger, key_id, provider, "", "")
    small.suspected = await small.reserve(ttl_ms=1)
    local = await small.reserve(ttl_ms=1, pool="local")
    await ledger.advance(timedelta(seconds=1))
    await small.spend(7)
    await small.spend(25)
    voided = await small.reserve()
    assert told(await ledger.one(void(voided))) == "ok"
    await small.settle(local, 3)
    small.held = await small.reserve(ttl_ms=86_400_000)
    return small
