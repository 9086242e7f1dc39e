"""Pools in PostgreSQL: which providers of the catalogue are one account at one provider."""

from collections.abc import Sequence
from typing import Any

from penstock.core import errors, postgres
from penstock.core.money import format_usd
from penstock.quota.account import Pool
from penstock.quota.store.changes import Change, changing
from penstock.quota.store.database import Database

_POOLS = """
    SELECT a.id, a.name, a.prepaid,
        coalesce(array_agg(p.provider ORDER BY p.provider) FILTER (WHERE p.provider IS NOT NULL),
            '{}') AS providers
    FROM accounts a LEFT JOIN pool_providers p ON p.pool_id = a.id WHERE a.kind = 'pool'
"""


class PoolStore:
    """What operators create and change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_pool(
        self, change: Change, name: str, providers: Sequence[str], *, prepaid: bool
    ) -> Pool:
        """Creates or changes it. Raises Conflict (PROVIDER_IN_OTHER_POOL)."""
        async with changing(self._database, change) as writing:
            connection = writing.connection
            # Two that create it at once: the second waits, and then changes it.
            pool_id = await connection.fetchval(
                "INSERT INTO accounts (kind, name, prepaid, created_at)"
                " VALUES ('pool', $1, $2, ledger_now()) ON CONFLICT DO NOTHING RETURNING id",
                name,
                prepaid,
            )
            before = None
            if pool_id is None:
                pool_id = await connection.fetchval(
                    "SELECT id FROM accounts WHERE kind = 'pool' AND name = $1 FOR NO KEY UPDATE",
                    name,
                )
                before = await _pool_by_id(connection, pool_id)
            await connection.execute(
                "UPDATE accounts SET prepaid = $2 WHERE id = $1", pool_id, prepaid
            )
            await _set_providers(connection, pool_id, name, sorted(providers))
            after = await _pool_by_id(connection, pool_id)
            await writing.configure(pool_id, "set_pool", before, after)
        return after

    async def close_pool(self, change: Change, pool_id: int) -> Pool:
        """Takes all providers out of it; again is no fault.

        An attempt that is being admitted at this very moment may still hold in it, and is settled
        in it like any other.

        Raises:
            NotFound: POOL_UNKNOWN.
            FailedPrecondition: POOL_IN_USE.
        """
        async with changing(self._database, change) as writing:
            connection = writing.connection
            await writing.lock_account("pool", pool_id)
            before = await _pool_by_id(connection, pool_id)
            await connection.execute("DELETE FROM pool_providers WHERE pool_id = $1", pool_id)
            await _check_unused(connection, before)
            after = await _pool_by_id(connection, pool_id)
            await writing.configure(pool_id, "close_pool", before, after)
        return after

    async def list_pools(self) -> list[Pool]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(_POOLS + " GROUP BY a.id ORDER BY a.name")
        return [_pool(row) for row in rows]


async def _check_unused(connection: postgres.Connection, pool: Pool) -> None:
    """Raises FailedPrecondition (POOL_IN_USE)."""
    found = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE state = 'held') AS held,"
        " coalesce(sum(amount) FILTER (WHERE state = 'held'), 0)::bigint AS held_nano_usd,"
        " count(*) FILTER (WHERE state = 'expired') AS suspected,"
        " coalesce(sum(amount) FILTER (WHERE state = 'expired'), 0)::bigint AS suspense_nano_usd"
        " FROM (SELECT state, amount FROM reservations WHERE pool_id = $1 AND state = 'held'"
        " UNION ALL SELECT state, amount FROM reservations"
        " WHERE pool_id = $1 AND state = 'expired' AND pool = 'paid') AS r",
        pool.id,
    )
    if not found["held"] and not found["suspected"]:
        return
    parts = []
    if found["held"]:
        amount = format_usd(found["held_nano_usd"])
        parts.append(f"{found['held']} running attempts hold {amount} USD")
    if found["suspected"]:
        amount = format_usd(found["suspense_nano_usd"])
        parts.append(f"{found['suspected']} abandoned ones have {amount} USD in suspense")
    raise errors.FailedPrecondition(
        f"pool {pool.name!r} is in use: {' and '.join(parts)}; let those that run end, and resolve"
        " the suspense, before it is closed",
        reason="POOL_IN_USE",
        metadata={name: str(value) for name, value in found.items()} | {"pool": pool.name},
    )


async def _set_providers(
    connection: postgres.Connection, pool_id: int, name: str, providers: Sequence[str]
) -> None:
    await connection.execute(
        "DELETE FROM pool_providers WHERE pool_id = $1 AND provider <> ALL ($2)",
        pool_id,
        providers,
    )
    await connection.execute(
        "INSERT INTO pool_providers (provider, pool_id) SELECT unnest($2::text[]), $1"
        " ON CONFLICT DO NOTHING",
        pool_id,
        providers,
    )
    other = await connection.fetchrow(
        "SELECT p.provider, a.name FROM pool_providers p JOIN accounts a ON a.id = p.pool_id"
        " WHERE p.provider = ANY ($2) AND p.pool_id <> $1 ORDER BY 1 LIMIT 1",
        pool_id,
        providers,
    )
    if other is not None:
        raise errors.Conflict(
            f"providers: {other['provider']!r} is in pool {other['name']!r}; a provider is in one"
            f" pool only: take it out there before it goes into {name!r}",
            reason="PROVIDER_IN_OTHER_POOL",
            metadata={"provider": other["provider"], "pool": other["name"]},
            violations=[errors.FieldViolation("providers", "is in another pool")],
        )


async def _pool_by_id(connection: postgres.Connection, pool_id: int) -> Pool:
    return _pool(await connection.fetchrow(_POOLS + " AND a.id = $1 GROUP BY a.id", pool_id))


def _pool(row: Any) -> Pool:
    return Pool(
        id=row["id"], name=row["name"], providers=tuple(row["providers"]), prepaid=row["prepaid"]
    )
