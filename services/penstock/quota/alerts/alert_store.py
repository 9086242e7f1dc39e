"""Alerts and their deliveries in PostgreSQL.

A delivery is claimed by moving its `next_try_at` behind a lease, under SKIP LOCKED: two processes
never hold the same one, and that of a killed process falls due by itself. How a try ended is
written only by who began the last one (`tries` is the fence).
"""
# ruff: noqa: S608 - of constants.

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from penstock.quota.alerts.alert import Alert, Answer, Claim, Listed
from penstock.quota.alerts.config import Webhook
from penstock.quota.store.database import Database

LEASE_SECONDS = 60
"""A try that has not said how it ended is dead after this: four times what a POST may take."""
ROUTED_MAX = 100
"""Alerts of one transaction."""
CLAIMED_MAX = 8
"""Tries of one webhook at once, of each process: a burst is not a flood to its receiver."""

_ALERT = """a.id, a.kind, a.at, a.detail::text AS detail,
        coalesce(acc.kind::text || '_' || acc.id, '') AS account_ref,
        coalesce(account_label(acc.id), '') AS account"""

_ROUTE = f"""
    WITH found AS (
        SELECT id FROM alerts WHERE routed_at IS NULL ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
    ),
    a AS (
        UPDATE alerts SET routed_at = ledger_now() FROM found WHERE alerts.id = found.id
        RETURNING alerts.*
    ),
    routed AS (
        INSERT INTO alert_deliveries (alert_id, webhook, host, shape, next_try_at)
        SELECT a.id, w.webhook, w.host, w.shape, ledger_now()
        FROM a, unnest($2::text[], $3::text[], $4::text[]) AS w (webhook, host, shape)
        ON CONFLICT DO NOTHING
    )
    SELECT {_ALERT} FROM a LEFT JOIN accounts acc ON acc.id = a.account_id ORDER BY a.id
"""
_CLAIM = f"""
    WITH due AS (
        SELECT alert_id, webhook FROM alert_deliveries
        WHERE webhook = $1 AND next_try_at <= (SELECT ledger_now())
        ORDER BY next_try_at, alert_id LIMIT $2 FOR UPDATE SKIP LOCKED
    ),
    d AS (
        UPDATE alert_deliveries AS d
        SET tries = d.tries + 1, next_try_at = ledger_now() + $3::integer * interval '1 second'
        FROM due WHERE d.alert_id = due.alert_id AND d.webhook = due.webhook
        RETURNING d.*
    )
    SELECT {_ALERT}, d.webhook, d.message_id, d.tries
    FROM d JOIN alerts a ON a.id = d.alert_id LEFT JOIN accounts acc ON acc.id = a.account_id
    ORDER BY a.id
"""
_FINISH = """
    UPDATE alert_deliveries SET
        next_try_at = ledger_now() + $6::bigint * interval '1 millisecond',
        delivered_at = CASE WHEN $5 = '' THEN ledger_now() END,
        given_up_at = CASE WHEN $5 <> '' AND $6::bigint IS NULL THEN ledger_now() END,
        last_status = $4, last_error = $5
    WHERE alert_id = $1 AND webhook = $2 AND tries = $3 AND next_try_at IS NOT NULL
"""
_LIST = f"""
    SELECT {_ALERT}, d.deliveries, d.delivered, d.last_error
    FROM alerts a LEFT JOIN accounts acc ON acc.id = a.account_id
    CROSS JOIN LATERAL (
        SELECT count(*) AS deliveries, count(delivered_at) AS delivered,
            coalesce(string_agg(host || ': ' || last_error, '; ' ORDER BY host)
                FILTER (WHERE last_error <> ''), '') AS last_error
        FROM alert_deliveries WHERE alert_id = a.id
    ) AS d
    WHERE ($1::text IS NULL OR a.kind = $1)
        AND ($2::bigint IS NULL OR a.account_id IN (
            SELECT id FROM accounts WHERE id = $2 OR org_id = $2 OR team_id = $2))
        AND ($3::bigint IS NULL OR a.id < $3)
    ORDER BY a.id DESC LIMIT $4
"""


class AlertStore:
    """Reads and writes for any number of processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def route(self, webhooks: Sequence[Webhook]) -> list[Alert]:
        """Alerts that nobody was told of yet; from now on they are on their way to all of these."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                _ROUTE,
                ROUTED_MAX,
                [webhook.id for webhook in webhooks],
                [webhook.host for webhook in webhooks],
                [webhook.shape for webhook in webhooks],
            )
        return [_alert(row) for row in rows]

    async def claim(self, webhook: Webhook, *, claims_max: int = CLAIMED_MAX) -> list[Claim]:
        """Deliveries to try now, oldest alert first; each is the caller's for LEASE_SECONDS."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_CLAIM, webhook.id, claims_max, LEASE_SECONDS)
        return [
            Claim(_alert(row), row["webhook"], row["message_id"].hex, row["tries"]) for row in rows
        ]

    async def finish(self, claim: Claim, answer: Answer, delay_ms: int | None) -> bool:
        """Writes how a try ended; `delay_ms` until the next, None: there is none.

        False: the claim was taken over, or was finished before.
        """
        async with self._database.connection() as connection:
            done: str = await connection.execute(
                _FINISH,
                claim.alert.id,
                claim.webhook,
                claim.tries,
                answer.status,
                answer.error,
                delay_ms,
            )
        return done == "UPDATE 1"

    async def list_alerts(
        self, *, kind: str | None, account_id: int | None, before_id: int | None, rows_max: int
    ) -> list[Listed]:
        """Newest first, older than the alert `before_id`; of an account and of all below it."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_LIST, kind, account_id, before_id, rows_max)
        return [
            Listed(_alert(row), row["delivered"], row["deliveries"], row["last_error"])
            for row in rows
        ]


def _alert(row: asyncpg.Record) -> Alert:
    detail: Any = msgspec.json.decode(row["detail"])
    return Alert(
        id=row["id"],
        kind=row["kind"],
        at=row["at"],
        account_id=row["account_ref"],
        account=row["account"],
        detail=detail,
    )
