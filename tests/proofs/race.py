"""The last cent: many tasks at four quota processes over one PostgreSQL (LEDGER, proof 2).

PYTHONPATH=tests python -m proofs.race --rounds 10
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.core.channel import connect
from penstock.core.deadline import Deadline
from penstock.core.errors import PenstockError
from penstock.core.ids import uuid7
from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from penstock.quota.v1 import quota_pb2
from penstock.router.ledger import QuotaLedger
from proofs.processes import TOKEN, quota_child
from proofs.servers import private_server
from support.ledger import Ledger, migrated_database

Balance = Callable[[], Coroutine[Any, Any, tuple[int, ...]]]

PROCESSES = 4
CENT_NANO_USD = 10_000_000


@dataclass(frozen=True)
class Race:
    """`admitted` of `tasks`, each asking for `amount`, fit into what is left."""

    name: str
    tasks: int
    limit: int
    amount: int
    where: str

    @property
    def admitted(self) -> int:
        return self.limit // self.amount


RACES = (
    Race("200 tasks at a budget's last cent", 200, CENT_NANO_USD, 300_000, "budget"),
    Race("200 tasks of 8 organisations at a pool's cent", 200, CENT_NANO_USD, 300_000, "pool"),
    Race("200 tasks at a grant's last cent", 200, CENT_NANO_USD, 300_000, "grant"),
    Race("200 tasks at 37 requests a day", 200, 37, 1, "requests"),
    Race("50 tasks of 5 on 100", 50, 100, 5, "budget"),
)


@dataclass
class Result:
    races: int = 0
    tasks: int = 0
    failures: list[str] = field(default_factory=list)


async def race_all(server: PrivateServer, rounds: int, on_race: Callable[[], None]) -> Result:
    result = Result()
    dsn = await migrated_database(server)
    ledger = await Ledger.open(dsn)
    with tempfile.TemporaryDirectory(prefix="penstock-race-") as folder:
        quotas = [quota_child(n, dsn, Path(folder)) for n in range(1, PROCESSES + 1)]
        try:
            for quota in quotas:
                quota.start()
            await asyncio.gather(*(quota.ready() for quota in quotas))
            channels = [connect(quota.address) for quota in quotas]
            routers = [QuotaLedger(channel, TOKEN) for channel in channels]
            for _ in range(rounds):
                for race in RACES:
                    await _run(race, ledger, routers, result)
                    on_race()
            for router, channel in zip(routers, channels, strict=True):
                await router.drain(5)
                await channel.close()
        finally:
            for quota in quotas:
                quota.end()
    await ledger.database.close()
    report = await audit_dsn(dsn)
    result.failures += report.findings
    return result


async def _run(race: Race, ledger: Ledger, routers: list[QuotaLedger], result: Result) -> None:
    keys, provider, balance = await _place(race, ledger)

    async def task(n: int) -> str:
        request = quota_pb2.ReserveRequest(
            reservation_id=uuid7(),
            request_id="req_race",
            attempt=1,
            key_id=f"key_{keys[n % len(keys)]}",
            pool=quota_pb2.POOL_KIND_PAID,
            provider=provider,
            model="gpt-4o-mini",
            amount_nano_usd=1 if race.where == "requests" else race.amount,
            ttl_ms=600_000,
        )
        try:
            await routers[n % len(routers)].reserve(request, Deadline.after(30))
        except PenstockError as error:
            return error.reason
        return "ok"

    told = await asyncio.gather(*(task(n) for n in range(race.tasks)))
    result.races += 1
    result.tasks += race.tasks
    refusals = {"BUDGET_EXCEEDED", "RATE_LIMITED", "CREDIT_EXHAUSTED"}
    unexpected = sorted(set(told) - refusals - {"ok"})
    held = (await balance())[1]
    expected: tuple[int, int, list[str]] = (race.admitted, race.admitted * race.amount, [])
    if (told.count("ok"), held, unexpected) != expected:
        result.failures.append(
            f"{race.name}: {told.count('ok')} were admitted, {held} are held, {unexpected};"
            f" and not {expected}"
        )


async def _place(race: Race, ledger: Ledger) -> tuple[list[int], str, Balance]:
    """Keys, the provider, and where to look for what is held."""
    if race.where == "pool":
        pool_id, (provider,) = await ledger.pool()
        await ledger.budget("pool", pool_id, race.limit)
        keys = [await ledger.new_key(None) for _ in range(PROCESSES * 2)]
        return keys, provider, lambda: ledger.balances("pool", pool_id)
    if race.where == "grant":
        org_id, _, key_id = await ledger.new_path(prepaid=True)
        await ledger.budget("org", org_id, None)
        grant = await ledger.grant("org", org_id, race.limit)
        return [key_id], "openai", lambda: ledger.credit(grant)
    if race.where == "requests":
        key_id = await ledger.new_key(None)
        await ledger.budget("key", key_id, race.limit, "day", unit="requests")
        return [key_id], "openai", lambda: ledger.balances("key", key_id, "day", "requests")
    key_id = await ledger.new_key(race.limit)
    return [key_id], "openai", lambda: ledger.balances("key", key_id)


def run(rounds: int, on_race: Callable[[], None] = lambda: None) -> Result:
    with private_server() as server:
        return asyncio.run(race_all(server, rounds, on_race))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    began = time.monotonic()
    result = run(arguments.rounds)
    sys.stdout.write(
        f"{result.races} races of {result.tasks} tasks at {PROCESSES} processes,"
        f" {len(result.failures)} failures, {time.monotonic() - began:.0f} s\n"
    )
    sys.stdout.writelines(f"{failure}\n" for failure in result.failures[:20])
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
