"""Organisations, teams and keys in PostgreSQL."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from penstock.core import errors, postgres
from penstock.quota.account import (
    PREFIX_CHARACTERS,
    Account,
    AccountKind,
    Key,
    KeyPolicy,
    KeyText,
    format_id,
    secret_hash,
)
from penstock.quota.store.changes import (
    Change,
    Writing,
    changing,
    require_account,
)
from penstock.quota.store.database import Database

SECRETS_MAX = 8
"""Texts of one key that are valid at once: rotations that overlap more are a mistake."""

_KEYS = """
    SELECT a.id, a.org_id, a.team_id, a.name, a.created_at, k.allowed_models, k.local_only,
        k.fail_open_local, n.prefix, v.secrets,
        -- The text that was shown ends with its key, or before.
        least(k.expires_at, h.valid_until) AS expires_at,
        EXISTS (
            SELECT FROM budgets x
            WHERE x.account_id IN (a.org_id, a.team_id, a.id)
                AND x.unit = 'requests' AND x.closed_at IS NULL
        ) AS counts_requests,
        CASE
            WHEN k.revoked_at IS NOT NULL THEN 'revoked'
            WHEN k.expires_at <= ledger_now() OR h.valid_until <= ledger_now() THEN 'expired'
            WHEN t.suspended OR o.suspended THEN 'suspended'
            ELSE 'active'
        END AS state
    FROM api_keys k
    JOIN accounts a ON a.id = k.account_id
    JOIN accounts t ON t.id = a.team_id
    JOIN accounts o ON o.id = a.org_id
    CROSS JOIN LATERAL (
        SELECT s.prefix FROM key_secrets s WHERE s.account_id = a.id
        ORDER BY s.created_at DESC, s.valid_until DESC NULLS FIRST, s.hash LIMIT 1
    ) AS n
    CROSS JOIN LATERAL (
        SELECT count(*)::integer AS secrets FROM key_secrets s
        WHERE s.account_id = a.id
            AND coalesce(s.valid_until, 'infinity'::timestamptz) > ledger_now()
    ) AS v
"""
_NO_TEXT = _KEYS + "CROSS JOIN (SELECT NULL::timestamptz AS valid_until) AS h "
_BY_TEXT = _KEYS + "JOIN key_secrets h ON h.account_id = a.id WHERE h.hash = $1"


class AccountStore:
    """Who may spend: what operators create and change, and who a key is."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_account(
        self,
        change: Change,
        kind: AccountKind,
        name: str,
        org_id: int | None,
        *,
        prepaid: bool = False,
        commercial: bool = False,
    ) -> Account:
        """Raises NotFound (ORG_UNKNOWN), Conflict (ACCOUNT_NAME_TAKEN)."""
        async with changing(self._database, change) as writing:
            if org_id is not None:
                await writing.lock_account("org", org_id)
            try:
                row = await writing.connection.fetchrow(
                    "INSERT INTO accounts (kind, name, org_id, prepaid, commercial, created_at)"
                    " VALUES ($1, $2, $3, $4, $5, ledger_now()) RETURNING *",
                    kind,
                    name,
                    org_id,
                    prepaid,
                    commercial,
                )
            except asyncpg.UniqueViolationError:
                raise errors.Conflict(
                    f"there is {'an' if kind == 'org' else 'a'} {kind} named {name!r} already",
                    reason="ACCOUNT_NAME_TAKEN",
                ) from None
            account = _account(row)
            await writing.configure(account.id, "create_account", None, account)
        return account

    async def update_account(
        self,
        change: Change,
        kind: AccountKind,
        account_id: int,
        *,
        suspended: bool | None = None,
        prepaid: bool | None = None,
        commercial: bool | None = None,
    ) -> Account:
        """None stays. Raises NotFound."""
        async with changing(self._database, change) as writing:
            before = _account(await writing.lock_account(kind, account_id))
            row = await writing.connection.fetchrow(
                "UPDATE accounts SET suspended = coalesce($2, suspended),"
                " prepaid = coalesce($3, prepaid), commercial = coalesce($4, commercial)"
                " WHERE id = $1 RETURNING *",
                account_id,
                suspended,
                prepaid,
                commercial,
            )
            after = _account(row)
            await writing.configure(account_id, "update_account", before, after)
            if before.suspended != after.suspended:
                await notify_keys(writing, account_id)
        return after

    async def list_accounts(self) -> list[Account]:
        """Organisations, each with its teams after it; pools last."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT * FROM accounts WHERE kind <> 'key'"
                " ORDER BY kind = 'pool', coalesce(org_id, id), id"
            )
        return [_account(row) for row in rows]

    async def create_key(
        self, change: Change, team_id: int, name: str, policy: KeyPolicy, secret: str
    ) -> Key:
        """Stores only the hash of `secret`.

        Raises:
            NotFound: TEAM_UNKNOWN.
            InvalidRequest: EXPIRES_AT_PAST.
        """
        async with changing(self._database, change) as writing:
            await writing.lock_account("team", team_id)
            await _check_expiry(writing, policy)
            key_id = await writing.connection.fetchval(
                "INSERT INTO accounts (kind, name, org_id, team_id, created_at)"
                " SELECT 'key', $2, org_id, id, ledger_now() FROM accounts WHERE id = $1"
                " RETURNING id",
                team_id,
                name,
            )
            await writing.connection.execute(
                "INSERT INTO api_keys"
                " (account_id, allowed_models, local_only, fail_open_local, expires_at)"
                " VALUES ($1, $2, $3, $4, $5)",
                key_id,
                list(policy.allowed_models),
                policy.local_only,
                policy.fail_open_local,
                policy.expires_at,
            )
            await _add_secret(writing, key_id, secret)
            key = await _key_by_id(writing.connection, key_id)
            await writing.configure(key_id, "create_key", None, key)
            # A router may remember the hash as unknown.
            await notify_keys(writing, key_id)
        return key

    async def rotate_key(
        self, change: Change, key_id: int, secret: str, overlap_seconds: int
    ) -> tuple[Key, list[KeyText]]:
        """A second text; those before it stay valid for the overlap, or for less if they ended
        sooner. Answered with those that were valid, newest first, when each ends now, and when it
        was to end.

        Raises:
            NotFound: KEY_UNKNOWN.
            FailedPrecondition: KEY_REVOKED, KEY_SECRETS_TOO_MANY.
        """
        async with changing(self._database, change) as writing:
            before = await _lock_key(writing, key_id)
            texts = await writing.connection.fetch(
                "UPDATE key_secrets s"
                " SET valid_until = least(s.valid_until, n.at + $2::interval)"
                " FROM (SELECT ledger_now() AS at) AS n, key_secrets old"
                " WHERE s.account_id = $1 AND old.hash = s.hash"
                " RETURNING s.prefix, s.created_at, s.valid_until, old.valid_until AS was_until,"
                " coalesce(old.valid_until, 'infinity'::timestamptz) > n.at AS was_valid",
                key_id,
                timedelta(seconds=overlap_seconds),
            )
            await _add_secret(writing, key_id, secret)
            after = await _key_by_id(writing.connection, key_id)
            if after.secrets > SECRETS_MAX:
                raise errors.FailedPrecondition(
                    f"{format_id('key', key_id)} would have {after.secrets} valid texts, at most"
                    f" {SECRETS_MAX} are allowed; wait for one to end, or rotate with overlap 0",
                    reason="KEY_SECRETS_TOO_MANY",
                )
            await writing.configure(key_id, "rotate_key", before, after)
            await notify_keys(writing, key_id)
        return after, _texts(texts, after.policy.expires_at)

    async def update_key(
        self, change: Change, key_id: int, *, name: str | None, **policy: Any
    ) -> Key:
        """Changes what is given of KeyPolicy's fields, and the name unless it is None.

        Raises:
            NotFound: KEY_UNKNOWN.
            FailedPrecondition: KEY_REVOKED.
            InvalidRequest: EXPIRES_AT_PAST.
        """
        async with changing(self._database, change) as writing:
            before = await _lock_key(writing, key_id)
            old = before.policy
            new = KeyPolicy(
                allowed_models=policy.get("allowed_models", old.allowed_models),
                local_only=policy.get("local_only", old.local_only),
                fail_open_local=policy.get("fail_open_local", old.fail_open_local),
                expires_at=policy.get("expires_at", old.expires_at),
            )
            if "expires_at" in policy:
                await _check_expiry(writing, new)
            if name is not None:
                await writing.connection.execute(
                    "UPDATE accounts SET name = $2 WHERE id = $1", key_id, name
                )
            await writing.connection.execute(
                "UPDATE api_keys SET allowed_models = $2, local_only = $3, fail_open_local = $4,"
                " expires_at = $5 WHERE account_id = $1",
                key_id,
                list(new.allowed_models),
                new.local_only,
                new.fail_open_local,
                new.expires_at,
            )
            after = await _key_by_id(writing.connection, key_id)
            await writing.configure(key_id, "update_key", before, after)
            if before != after:
                await notify_keys(writing, key_id)
        return after

    async def revoke_key(self, change: Change, key_id: int) -> Key:
        """For ever; again is no fault. Raises NotFound (KEY_UNKNOWN)."""
        async with changing(self._database, change) as writing:
            await writing.lock_account("key", key_id)
            before = await _key_by_id(writing.connection, key_id)
            await writing.connection.execute(
                "UPDATE api_keys SET revoked_at = coalesce(revoked_at, ledger_now())"
                " WHERE account_id = $1",
                key_id,
            )
            after = await _key_by_id(writing.connection, key_id)
            await writing.configure(key_id, "revoke_key", before, after)
            await notify_keys(writing, key_id)
        return after

    async def list_keys(self, team_id: int | None) -> list[Key]:
        """Raises NotFound (TEAM_UNKNOWN)."""
        async with self._database.connection() as connection:
            if team_id is not None:
                await require_account(connection, "team", team_id)
            rows = await connection.fetch(
                _NO_TEXT + "WHERE $1::bigint IS NULL OR a.team_id = $1 ORDER BY a.id", team_id
            )
        return [_key(row) for row in rows]

    async def key_by_hash(self, hash_: bytes) -> Key | None:
        """By any of its texts. Of a text whose time is over the key is expired."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_BY_TEXT, hash_)
        return None if row is None else _key(row)


async def notify_keys(writing: Writing, account_id: int) -> None:
    """Routers ask again for every key of the account; they hear of it once it is committed."""
    await writing.connection.execute("SELECT notify_keys($1)", account_id)


async def _lock_key(writing: Writing, key_id: int) -> Key:
    await writing.lock_account("key", key_id)
    key = await _key_by_id(writing.connection, key_id)
    if key.state == "revoked":
        raise errors.FailedPrecondition(
            f"{format_id('key', key_id)} is revoked for ever; create another", reason="KEY_REVOKED"
        )
    return key


async def _check_expiry(writing: Writing, policy: KeyPolicy) -> None:
    if await writing.connection.fetchval(
        "SELECT $1::timestamptz <= ledger_now()", policy.expires_at
    ):
        raise errors.InvalidRequest.of(
            [errors.FieldViolation("expires_at", "lies in the past; to end a key now, revoke it")],
            reason="EXPIRES_AT_PAST",
        )


async def _add_secret(writing: Writing, key_id: int, secret: str) -> None:
    await writing.connection.execute(
        "INSERT INTO key_secrets (hash, account_id, prefix, created_at)"
        " VALUES ($1, $2, $3, ledger_now())",
        secret_hash(secret),
        key_id,
        secret[:PREFIX_CHARACTERS],
    )


async def _key_by_id(connection: postgres.Connection, key_id: int) -> Key:
    return _key(await connection.fetchrow(_NO_TEXT + "WHERE a.id = $1", key_id))


def _texts(rows: Sequence[Any], key_ends: datetime | None) -> list[KeyText]:
    def first(at: datetime) -> datetime:
        return at if key_ends is None else min(at, key_ends)

    valid = [row for row in rows if row["was_valid"]]
    # As in `_KEYS`: of two of one moment the one that ends later.
    newest_first = sorted(
        valid, key=lambda row: (row["created_at"], row["valid_until"]), reverse=True
    )
    return [
        KeyText(
            row["prefix"],
            row["created_at"],
            first(row["valid_until"]),
            None if row["was_until"] is None else first(row["was_until"]),
        )
        for row in newest_first
    ]


def _account(row: Any) -> Account:
    return Account(
        id=row["id"],
        kind=row["kind"],
        name=row["name"],
        org_id=row["org_id"],
        suspended=row["suspended"],
        prepaid=row["prepaid"],
        commercial=row["commercial"],
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
        secrets=row["secrets"],
        counts_requests=row["counts_requests"],
        created_at=row["created_at"],
    )
