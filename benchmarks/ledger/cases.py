"""What is measured, in this order; later ones compare themselves with what the first ones found."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import asyncpg
from tests.load.fill_ledger import Filled, fill
from tests.support.plans import scans_of_operations, scans_of_reads

from benchmarks.ledger import generator, sql_alone
from benchmarks.ledger.figures import Figure
from benchmarks.ledger.generator import Load, Told
from benchmarks.ledger.house import (
    POOL_PROVIDER,
    QuotaProcesses,
    add_accounts,
    add_pool,
    checkpoint,
    new_ledger,
    postgres_cpu_seconds,
    quota_processes,
    some_keys,
)
from benchmarks.ledger.messages import PROVIDER
from penstock.core.postgres_server import PrivateServer

PAIRS_PER_SECOND_GOAL = 20_000
OF_SQL_GOAL = 0.7
HOT_GOAL = 0.8
P99_GOAL_SECONDS = 0.010
STREAMS = 4
"""Of each quota process: as many keep it busy."""
SQL_CONNECTIONS = (1, 2, 4)
SQL_BATCHES = (256, 512)
HOT_POOL_PROCESSES = 4
P99_GOAL_SHARE = 1 / 2
LATENCY_SHARES = {"an eighth": 1 / 8, "a quarter": 1 / 4, "half": 1 / 2}
"""Of the most that the stream does."""
LATENCY_SECONDS = 4.0
WARM_UP_PAIRS = 2_000


@dataclass
class Bench:
    """The machine under test, and what was found so far."""

    server: PrivateServer
    folder: Path
    pairs: int
    accounts: int
    entries: int
    sql_alone: float = 0.0
    batched: float = 0.0
    filled: tuple[str, Filled] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    title: str
    measure: Callable[[Bench], Coroutine[None, None, list[Figure]]]


async def _sql_alone(bench: Bench) -> list[Figure]:
    dsn = await new_ledger(bench.server)
    keys = await add_accounts(dsn)
    found = {}
    for batch in SQL_BATCHES:
        for connections in SQL_CONNECTIONS:
            await checkpoint(bench.server)
            found[connections, batch] = await sql_alone.pairs_per_second(
                dsn, keys, connections=connections, batch=batch, pairs=bench.pairs
            )
    connections, batch = max(found, key=lambda shape: found[shape])
    bench.sql_alone = found[connections, batch]
    what = f"SQL function alone, best of 1 to {max(SQL_CONNECTIONS)} connections"
    return [Figure(what, f"{_rate(bench.sql_alone)} ({connections} × batches of {batch})")]


async def _batched(bench: Bench) -> list[Figure]:
    dsn = await new_ledger(bench.server)
    keys = await add_accounts(dsn)
    run = await _measure(bench, dsn, keys)
    bench.batched = run.pairs_per_second
    goal, ok = f"≥ {PAIRS_PER_SECOND_GOAL:,} pairs/s", bench.batched >= PAIRS_PER_SECOND_GOAL
    figures = []
    if bench.sql_alone:
        of_sql = bench.batched / bench.sql_alone
        goal += f", or ≥ {OF_SQL_GOAL:.0%} of the SQL function alone"
        ok = ok or of_sql >= OF_SQL_GOAL
        figures = [Figure("… of the SQL function alone", f"{of_sql:.0%}")]
    name = f"reserve + settle, one quota process, {STREAMS} streams"
    cpu = Figure("… CPU time of a pair: PostgreSQL + quota + load generator", run.cpu)
    return [Figure(name, _rate(bench.batched), goal, ok), *figures, cpu]


async def _latency(bench: Bench) -> list[Figure]:
    dsn = await new_ledger(bench.server)
    keys = await add_accounts(dsn)
    figures = []
    async with quota_processes(dsn, 1, bench.folder) as quota:
        for name, share in LATENCY_SHARES.items():
            rate = bench.batched * share
            load = _load(quota, keys, WARM_UP_PAIRS, PROVIDER, rate)
            await _apart(generator.open_loop, load)
            load = _load(quota, keys, int(rate * LATENCY_SECONDS), PROVIDER, rate)
            told, cpu = await _watched(bench, quota, generator.open_loop, load)
            latencies = sorted(told.latencies_seconds)
            p50, p99 = (latencies[int(len(latencies) * part)] for part in (0.50, 0.99))
            what = f"latency of an operation at {name} of that ({_rate(rate)})"
            cores = " + ".join(f"{seconds / told.seconds:.1f}" for seconds in cpu)
            value = f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms ({cores} cores)"
            if share == P99_GOAL_SHARE:
                goal = f"p99 ≤ {P99_GOAL_SECONDS * 1000:.0f} ms"
                figures.append(Figure(what, value, goal, p99 <= P99_GOAL_SECONDS))
            else:
                figures.append(Figure(what, value))
    return figures


async def _hot_key(bench: Bench) -> list[Figure]:
    dsn = await new_ledger(bench.server)
    keys = await add_accounts(dsn)
    run = await _measure(bench, dsn, keys[:1])
    return [_compared(bench, "hot key: all on one key", run)]


async def _hot_pool(bench: Bench) -> list[Figure]:
    dsn = await new_ledger(bench.server)
    keys = await add_accounts(dsn)
    await add_pool(dsn)
    apart = await _measure(bench, dsn, keys, processes=HOT_POOL_PROCESSES)
    run = await _measure(bench, dsn, keys, provider=POOL_PROVIDER, processes=HOT_POOL_PROCESSES)
    of_apart = run.pairs_per_second / apart.pairs_per_second
    return [
        _compared(bench, f"{HOT_POOL_PROCESSES} quota processes", apart, goal=False),
        _compared(bench, "hot pool: the same, all on one provider's account", run, goal=False),
        Figure("… of theirs", f"{of_apart:.0%}", *_at_least(of_apart)),
    ]


async def _filled(bench: Bench) -> list[Figure]:
    dsn, made = await _fill(bench)
    run = await _measure(bench, dsn, some_keys(made))
    name = f"{bench.accounts:,} accounts and {bench.entries:,} entries filled in"
    return [_compared(bench, name, run)]


async def _plans(bench: Bench) -> list[Figure]:
    dsn, made = bench.filled or await _fill(bench)
    connection = await asyncpg.connect(dsn)
    try:
        scans = set(await scans_of_operations(connection, some_keys(made)))
        reads = await scans_of_reads(connection)
    finally:
        await connection.close()
    scans.update(*reads.values())
    value = ", ".join(sorted(scans)) if scans else "none"
    what = f"sequential scans in each operation and {len(reads)} reads, filled in"
    return [Figure(what, value, "none", not scans)]


async def _fill(bench: Bench) -> tuple[str, Filled]:
    dsn = await new_ledger(bench.server)
    bench.filled = dsn, await fill(dsn, accounts=bench.accounts, entries=bench.entries)
    return bench.filled


CASES = {
    "sql": Case("the SQL function alone", _sql_alone),
    "batched": Case("the batched stream", _batched),
    "latency": Case("latency at half of it", _latency),
    "hot-key": Case("a hot key", _hot_key),
    "hot-pool": Case("a hot pool", _hot_pool),
    "filled": Case("a filled ledger", _filled),
    "plans": Case("plans", _plans),
}


@dataclass(frozen=True, slots=True)
class _Run:
    pairs_per_second: float
    cpu: str


async def _measure(
    bench: Bench,
    dsn: str,
    keys: Sequence[int],
    *,
    provider: str = PROVIDER,
    processes: int = 1,
) -> _Run:
    async with quota_processes(dsn, processes, bench.folder) as quota:
        await _apart(generator.closed_loop, _load(quota, keys, WARM_UP_PAIRS, provider))
        load = _load(quota, keys, bench.pairs, provider)
        told, cpu = await _watched(bench, quota, generator.closed_loop, load)
    micros = " + ".join(f"{seconds / told.pairs * 1e6:.0f}" for seconds in cpu)
    return _Run(told.pairs / told.seconds, f"{micros} µs")


async def _watched(
    bench: Bench, quota: QuotaProcesses, measure: Callable[[Load], Told], load: Load
) -> tuple[Told, tuple[float, float, float]]:
    """With the CPU seconds of PostgreSQL, the quota processes and the load generator."""
    await checkpoint(bench.server)
    before = postgres_cpu_seconds(bench.server), quota.cpu_seconds()
    told = await _apart(measure, load)
    after = postgres_cpu_seconds(bench.server), quota.cpu_seconds()
    return told, (after[0] - before[0], after[1] - before[1], told.cpu_seconds)


def _load(
    quota: QuotaProcesses, keys: Sequence[int], pairs: int, provider: str, rate: float = 0.0
) -> Load:
    streams = STREAMS * len(quota.addresses)
    return Load(quota.addresses, quota.token, streams, keys, pairs, provider, rate)


async def _apart(measure: Callable[[Load], Told], load: Load) -> Told:
    """In a process of its own, as routers are."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, measure, load)


def _compared(bench: Bench, name: str, run: _Run, *, goal: bool = True) -> Figure:
    value = f"{_rate(run.pairs_per_second)} ({run.cpu} of CPU time)"
    if not bench.batched:
        return Figure(name, value)
    ratio = run.pairs_per_second / bench.batched
    value = f"{value}, {ratio:.0%} of the batched stream's"
    return Figure(name, value, *_at_least(ratio)) if goal else Figure(name, value)


def _at_least(ratio: float) -> tuple[str, bool]:
    return f"≥ {HOT_GOAL:.0%}", ratio >= HOT_GOAL


def _rate(pairs_per_second: float) -> str:
    return f"{pairs_per_second:,.0f} pairs/s"
