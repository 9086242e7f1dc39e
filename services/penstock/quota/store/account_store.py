"""Accounts, keys and budgets in PostgreSQL."""

from typing import Any

import asyncpg

from penstock.core import errors, postgres
from penstock.quota.account import (
    PREFIX_CHARACTERS,
    Account,
    AccountKind,
    Budget,
    Key,
    KeyPolicy,
    WindowKind,
    format_id,
    secret_hash,
)
from penstock.quota.store.database import Database

_KEYS = """
    SELECT a.id, a.org_id, a.team_id, a.name, a.created_at, k.prefix, k.allowed_models,
        k.local_only, k.fail_open_local, k.expires_at,
        CASE
            WHEN k.revoked_at IS NOT NULL THEN 'revoked'
            WHEN k.expires_at <= ledger_now() THEN 'expired'
            WHEN t.suspended OR o.suspended THEN 'suspended'
            ELSE 'active'
        END AS state
    FROM api_keys k
    JOIN accounts a ON a.id = k.account_id
    JOIN accounts t ON t.id = a.team_id
    JOIN accounts o ON o.id = a.org_id
"""
_BUDGETS = """
    SELECT x.id, a.kind AS account_kind, x.account_id, x.kind, x.name, x.time_zone,
        x.limit_nano_usd, coalesce(b.posted, 0) AS posted, coalesce(b.held, 0) AS held,
        coalesce(b.suspense, 0) AS suspense,
        window_end(x.kind, x.time_zone, w.key) AS resets_at
    FROM budgets x
    JOIN accounts a ON a.id = x.account_id
    CROSS JOIN LATERAL (SELECT window_key(x.kind, x.time_zone, ledger_now()) AS key) AS w
    LEFT JOIN buckets b ON b.budget_id = x.id AND b.window_key = w.key
"""


class AccountStore:
    """What operators create and change, and who a key is."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_account(self, kind: AccountKind, name: str, org_id: int | None) -> Account:
        """Raises NotFound (ORG_UNKNOWN), Conflict (ACCOUNT_NAME_TAKEN)."""
        async with self._database.connection() as connection:
            if org_id is not None:
                await _require(connection, org_id, "org")
            try:
                row = await connection.fetchrow(
                    "INSERT INTO accounts (kind, name, org_id, created_at)"
                    " VALUES ($1, $2, $3, ledger_now()) RETURNING *",
                    kind,
                    name,
                    org_id,
                )
            except asyncpg.UniqueViolationError:
                raise errors.Conflict(
                    f"there is {'an' if kind == 'org' else 'a'} {kind} named {name!r} already",
                    reason="ACCOUNT_NAME_TAKEN",
                ) from None
        return _account(row)

    async def list_accounts(self) -> list[Account]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT * FROM accounts WHERE kind <> 'key' ORDER BY coalesce(org_id, id), id"
            )
        return [_account(row) for row in rows]

    async def set_suspended(
        self, kind: AccountKind, account_id: int, *, suspended: bool
    ) -> Account:
        """Raises NotFound."""
        async with self._database.connection() as connection, connection.transaction():
            await _require(connection, account_id, kind)
            row = await connection.fetchrow(
                "UPDATE accounts SET suspended = $2 WHERE id = $1 RETURNING *",
                account_id,
                suspended,
            )
            await connection.execute("SELECT notify_keys($1)", account_id)
        return _account(row)

    async def create_key(self, team_id: int, name: str, policy: KeyPolicy, secret: str) -> Key:
        """Stores only the hash of `secret`. Raises NotFound (TEAM_UNKNOWN)."""
        async with self._database.connection() as connection, connection.transaction():
            await _require(connection, team_id, "team")
            key_id = await connection.fetchval(
                "INSERT INTO accounts (kind, name, org_id, team_id, created_at)"
                " SELECT 'key', $2, org_id, id, ledger_now() FROM accounts WHERE id = $1"
                " RETURNING id",
                team_id,
                name,
            )
            await connection.execute(
                "INSERT INTO api_keys (account_id, hash, prefix, allowed_models, local_only,"
                " fail_open_local, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
                key_id,
                secret_hash(secret),
                secret[:PREFIX_CHARACTERS],
                list(policy.allowed_models),
                policy.local_only,
                policy.fail_open_local,
                policy.expires_at,
            )
            # A router may remember the hash as unknown.
            await connection.execute("SELECT notify_keys($1)", key_id)
            row = await connection.fetchrow(_KEYS + "WHERE a.id = $1", key_id)
        return _key(row)

    async def list_keys(self, team_id: int | None) -> list[Key]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _KEYS + "WHERE $1::bigint IS NULL OR a.team_id = $1 ORDER BY a.id", team_id
            )
        return [_key(row) for row in rows]

    async def key_by_hash(self, hash_: bytes) -> Key | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_KEYS + "WHERE k.hash = $1", hash_)
        return None if row is None else _key(row)

    async def revoke_key(self, key_id: int) -> Key:
        """For ever; again is no fault. Raises NotFound (KEY_UNKNOWN)."""
        async with self._database.connection() as connection, connection.transaction():
            await _require(connection, key_id, "key")
            await connection.execute(
                "UPDATE api_keys SET revoked_at = coalesce(revoked_at, ledger_now())"
                " WHERE account_id = $1",
                key_id,
            )
            await connection.execute("SELECT notify_keys($1)", key_id)
            row = await connection.fetchrow(_KEYS + "WHERE a.id = $1", key_id)
        return _key(row)

    async def set_budget(
        self,
        account: tuple[AccountKind, int],
        window: WindowKind,
        *,
        name: str,
        time_zone: str,
        limit_nano_usd: int | None,
    ) -> Budget:
        """Creates or changes it; None is unlimited.

        A limit below what is spent stops admission, nothing else. A new budget counts from now on.

        Raises:
            NotFound: the account.
            InvalidRequest: TIME_ZONE_UNKNOWN.
        """
        kind, account_id = account
        async with self._database.connection() as connection, connection.transaction():
            await _require(connection, account_id, kind)
            if not await connection.fetchval(
                "SELECT 1 FROM pg_timezone_names WHERE name = $1", time_zone
            ):
                raise errors.InvalidRequest.of(
                    [
                        errors.FieldViolation(
                            "time_zone",
                            f"{time_zone!r} is no IANA time zone, e.g. Europe/Berlin or UTC",
                        )
                    ],
                    reason="TIME_ZONE_UNKNOWN",
                )
            budget_id = await connection.fetchval(
                "INSERT INTO budgets AS old (account_id, kind, name, time_zone, limit_nano_usd)"
                " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (account_id, kind) DO UPDATE"
                " SET name = excluded.name, time_zone = excluded.time_zone,"
                " limit_nano_usd = excluded.limit_nano_usd, limit_lowered_at = CASE"
                " WHEN excluded.limit_nano_usd < coalesce(old.limit_nano_usd, 9223372036854775807)"
                " THEN ledger_now() ELSE old.limit_lowered_at END RETURNING id",
                account_id,
                window,
                name,
                time_zone,
                limit_nano_usd,
            )
            row = await connection.fetchrow(_BUDGETS + "WHERE x.id = $1", budget_id)
        return _budget(row)

    async def list_budgets(self, account_id: int | None) -> list[Budget]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _BUDGETS + "WHERE $1::bigint IS NULL OR x.account_id = $1"
                " ORDER BY a.kind, x.account_id, x.kind",
                account_id,
            )
        return [_budget(row) for row in rows]


async def _require(connection: postgres.Connection, account_id: int, kind: AccountKind) -> None:
    found = await connection.fetchval(
        "SELECT 1 FROM accounts WHERE id = $1 AND kind = $2", account_id, kind
    )
    if not found:
        raise errors.NotFound(
            f"{format_id(kind, account_id)} does not exist", reason=f"{kind.upper()}_UNKNOWN"
        )


def _account(row: Any) -> Account:
    return Account(
        id=row["id"],
        kind=row["kind"],
        name=row["name"],
        org_id=row["org_id"],
        suspended=row["suspended"],
        created_at=row["created_at"],
    )


def _key(row: Any) -> Key:
    return Key(
        id=row["id"],
        org_id=row["org_id"],
        team_id=row["team_id"],
        name=row["name"],
        state=row["state"],
        policy=KeyPolicy(
            allowed_models=tuple(row["allowed_models"]),
            local_only=row["local_only"],
            fail_open_local=row["fail_open_local"],
            expires_at=row["expires_at"],
        ),
        prefix=row["prefix"],
        created_at=row["created_at"],
    )


def _budget(row: Any) -> Budget:
    return Budget(
        id=row["id"],
        account_kind=row["account_kind"],
        account_id=row["account_id"],
        window=row["kind"],
        name=row["name"],
        time_zone=row["time_zone"],
        limit_nano_usd=row["limit_nano_usd"],
        posted_nano_usd=row["posted"],
        held_nano_usd=row["held"],
        suspense_nano_usd=row["suspense"],
        resets_at=row["resets_at"],
    )
