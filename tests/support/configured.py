"""Entries of settings that a test wrote into the tables itself, as the stores would make them."""

from collections.abc import Sequence

import asyncpg

from penstock.quota.audit import settings
from penstock.quota.store.changes import Change, Writing

_CASES = " ".join(
    f"WHEN '{subject}' THEN ARRAY[{', '.join(f'{one!r}' for one in whats)}]"
    for subject, whats in settings.SUBJECTS.items()
)
_ENTER = f"""
    INSERT INTO entries (epoch, at, operation, account_id, bucket_ids, actor, reason, detail)
    SELECT current_epoch(), ledger_now(), 'configure', p.account_id, '{{}}', 'test', '',
        jsonb_build_object('what', w.whats[1], 'before', l.after,
            'after', p.settings || jsonb_build_object('id', p.id, 'state',
                CASE p.settings->>'revoked' WHEN 'true' THEN 'revoked' END))
    FROM ({settings.PRESENT}) AS p
    CROSS JOIN LATERAL (SELECT CASE p.subject {_CASES} END AS whats) AS w
    LEFT JOIN LATERAL (
        SELECT e.detail->'after' AS after FROM entries e
        WHERE e.account_id = p.account_id AND e.detail->>'what' = ANY (w.whats)
            AND (e.detail->'after'->>'id')::bigint = p.id
        ORDER BY e.id DESC LIMIT 1
    ) AS l ON true
    WHERE p.account_id = ANY ($1)
"""


async def enter_settings(connection: asyncpg.Connection, account_ids: Sequence[int]) -> None:
    """One entry for each of these accounts, and for each budget and grant of theirs."""
    await connection.execute(_ENTER, list(account_ids))
    for account_id in account_ids:
        await Writing(connection, 0, Change("test")).new_version(account_id)
