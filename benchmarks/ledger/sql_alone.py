"""The SQL function alone: prepared batches, called directly, over a few connections."""

import asyncio
import time
from collections.abc import Sequence

import asyncpg

from benchmarks.ledger.messages import HELD_NANO_USD, MODEL, POSTED_NANO_USD, PROVIDER, TTL_MS
from penstock.core.ids import uuid7, uuid7_unix_ms
from penstock.quota.ledger import ID_HORIZON_MS, Reserve, Settle
from penstock.quota.store.ledger_store import Timed, row

Rows = list[tuple[object, ...]]


async def pairs_per_second(
    dsn: str, key_ids: Sequence[int], *, connections: int, batch: int, pairs: int
) -> float:
    """Each connection takes batches of reserves, each followed by the batch of their settles."""
    batches = [
        _prepare(key_ids, start, min(batch, pairs - start)) for start in range(0, pairs, batch)
    ]
    waiting = iter(batches)
    pool = [await _connect(dsn) for _ in range(connections)]

    async def work(connection: asyncpg.Connection) -> None:
        for reserves, settles in waiting:
            for rows in (reserves, settles):
                refused = await connection.fetchval(
                    "SELECT count(reason) FROM apply_batch($1, $2)", rows, ID_HORIZON_MS
                )
                assert refused == 0, refused

    try:
        began = time.perf_counter()
        await asyncio.gather(*(work(connection) for connection in pool))
        return pairs / (time.perf_counter() - began)
    finally:
        for connection in pool:
            await connection.close()


async def _connect(dsn: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(dsn, server_settings={"jit": "off"})
    # The first call plans.
    await connection.fetchval("SELECT count(reason) FROM apply_batch('{}', $1)", ID_HORIZON_MS)
    return connection


def _prepare(key_ids: Sequence[int], start: int, count: int) -> tuple[Rows, Rows]:
    reserves, settles = [], []
    for n in range(count):
        id_ = uuid7()
        unix_ms = uuid7_unix_ms(id_)
        key_id = key_ids[(start + n) % len(key_ids)]
        reserve = Reserve(
            *(id_, unix_ms, f"req_{id_}", 1, key_id, "paid", PROVIDER, MODEL, HELD_NANO_USD),
            *(600, TTL_MS, "", {}),
        )
        settle = Settle(
            *(id_, unix_ms, POSTED_NANO_USD, 400, 0, 120, 0, False, "ok"),
            *("0af7651916cd43dd8448eb211c80319c", key_id),
        )
        reserves.append(row(n + 1, Timed(reserve)))
        settles.append(row(n + 1, Timed(settle)))
    return reserves, settles
