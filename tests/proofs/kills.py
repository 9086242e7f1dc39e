"""`kill -9` of a router, a quota process and PostgreSQL, under load (LEDGER, proof 5).

Two quota processes over one PostgreSQL with fsync on, a router-like process at each. After each
kill the victim is started again, work goes on, and the audit must balance to the nano. In the end
every answer that was acknowledged must be found in the ledger as it was given.

    PYTHONPATH=tests python -m proofs.kills --kills 50 --seed 7
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from proofs.processes import Child, ClientChild, QuotaChild, client_child, quota_child
from proofs.servers import private_server
from support.ledger import Ledger, migrated_database
from support.postgres import crash

VICTIMS = ("router", "quota", "postgres")
LIMIT_NANO_USD = 40_000
"""Of the tight one of the keys: it is refused most of the time."""
IN_FLIGHT = 40
"""Of the pool: fewer than the routers have tasks, so that some are refused."""
ACKNOWLEDGED_BETWEEN = 40
"""Answers that each router gets before the next kill: the load is there again."""


@dataclass
class Result:
    """`failures` say what was wrong, after which kill."""

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    entries: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass
class House:
    """All that runs."""

    server: PrivateServer
    dsn: str
    quotas: list[QuotaChild]
    routers: list[ClientChild]

    async def kill(self, what: str, rng: random.Random) -> None:
        """Kills one, and starts it again."""
        if what == "postgres":
            await asyncio.to_thread(crash, self.server)
            await asyncio.to_thread(self.server.start)
            return
        children: list[Child] = [*(self.routers if what == "router" else self.quotas)]
        victim = rng.choice(children)
        victim.kill()
        victim.start()

    async def load(self) -> None:
        """Returns when every router is answered again."""
        try:
            await asyncio.gather(*(r.progress(ACKNOWLEDGED_BETWEEN) for r in self.routers))
        except AssertionError as error:
            logs = [f"{q.name}: {q.log.read_text()[-1500:]}" for q in self.quotas]
            raise AssertionError("\n".join([str(error), *logs])) from error


async def kill_loop(
    server: PrivateServer, kills: int, seed: int, on_kill: Callable[[str], None]
) -> Result:
    result = Result()
    rng = random.Random(seed)
    dsn = await migrated_database(server)
    with tempfile.TemporaryDirectory(prefix="penstock-kills-") as folder:
        house = await _house(server, dsn, Path(folder), seed)
        try:
            for quota in house.quotas:
                quota.start()
            await asyncio.gather(*(quota.ready() for quota in house.quotas))
            for router in house.routers:
                router.start()
            await house.load()
            for n in range(kills):
                what = VICTIMS[n % len(VICTIMS)]
                await asyncio.sleep(rng.uniform(0, 0.1))  # the kill comes at any moment
                await house.kill(what, rng)
                await house.load()
                result.kills[what] += 1
                await _audit(dsn, f"after kill {n + 1} ({what})", result)
                on_kill(what)
            await _end(house, result)
        finally:
            for child in [*house.routers, *house.quotas]:
                if child.process is not None and child.process.poll() is None:
                    child.kill()
    return result


async def _house(server: PrivateServer, dsn: str, folder: Path, seed: int) -> House:
    ledger = await Ledger.open(dsn)
    org_id, team_id, key_id = await ledger.new_path()
    await ledger.budget("org", org_id, None)
    await ledger.budget("org", org_id, 10**12, "minute")
    await ledger.budget("team", team_id, 1000, "minute", unit="requests", name="unreachable")
    await ledger.budget("key", key_id, LIMIT_NANO_USD, "minute")
    await ledger.grant("org", org_id, 10**6)
    await ledger.grant("org", org_id, 10**9)
    other = await ledger.another_key(team_id)
    free = [await ledger.new_key(None) for _ in range(2)]
    # All organisations pay with one account at the provider: it is the row that everybody wants.
    pool_id, (provider,) = await ledger.pool(prepaid=True)
    await ledger.grant("pool", pool_id, 10**12)
    await ledger.budget("pool", pool_id, IN_FLIGHT, unit="in_flight")
    await ledger.budget("pool", pool_id, None, "minute")
    await ledger.database.close()
    quotas = [quota_child(n, dsn, folder) for n in (1, 2)]
    routers = [
        client_child(n, quota.address, [key_id, other, *free], provider, folder, seed)
        for n, quota in enumerate(quotas, 1)
    ]
    return House(server, dsn, quotas, routers)


async def _audit(dsn: str, when: str, result: Result) -> None:
    report = await audit_dsn(dsn)
    result.entries = report.entries
    for check in report.checks:
        result.failures += [f"{when}: {check.name}: {finding}" for finding in check.findings]


async def _end(house: House, result: Result) -> None:
    for router in house.routers:
        code = router.end()
        if code != 0:
            result.failures.append(f"{router.name} ended with {code}")
    await _audit(house.dsn, "in the end", result)
    connection = await asyncpg.connect(house.dsn)
    rows = await connection.fetch("SELECT id, state, posted, asked FROM reservations")
    await connection.close()
    known = {str(row["id"]): row for row in rows}
    for router in house.routers:
        # A line that was cut off by a kill was acknowledged, and cannot be read.
        for line in router.journal.read_text().split("\n")[:-1]:
            words = line.split(" ")
            if len(words) == 3 and (why := _lost(words[0], words[1], words[2], known)):
                result.failures.append(why)
            result.acknowledged += 1


def _lost(what: str, id_: str, amount: str, known: dict[str, asyncpg.Record]) -> str:
    row = known.get(id_)
    if row is None:
        return f"{what} {id_} was acknowledged and is lost"
    if what == "held" and row["asked"] != int(amount):
        return f"{id_}: {amount} were held, and {row['asked']} are known"
    if what == "settled" and (row["state"], row["posted"]) != ("settled", int(amount)):
        return f"{id_}: {amount} were settled, and it is {row['state']} with {row['posted']}"
    return ""


def run(kills: int, seed: int, on_kill: Callable[[str], None] = lambda _: None) -> Result:
    with private_server(durable=True) as server:
        return asyncio.run(kill_loop(server, kills, seed, on_kill))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    arguments = parser.parse_args()
    began = time.monotonic()
    result = run(arguments.kills, arguments.seed)
    sys.stdout.write(
        f"seed {arguments.seed}: {dict(result.kills)} killed, {result.acknowledged} answers"
        f" acknowledged, {result.entries} entries, {len(result.failures)} failures,"
        f" {time.monotonic() - began:.0f} s\n"
    )
    sys.stdout.writelines(f"{failure}\n" for failure in result.failures[:20])
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
