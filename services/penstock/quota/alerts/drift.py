"""The alert of a reconciliation: what a provider bills and no entry explains."""

from datetime import date

import msgspec

from penstock.core import postgres

_INSERT = """
    INSERT INTO alerts (alert_key, kind, at, account_id, detail)
    VALUES ($1, 'drift', ledger_now(), $2, $3::text::jsonb)
    ON CONFLICT DO NOTHING RETURNING id
"""


async def record_drift(
    connection: postgres.Connection,
    *,
    provider: str,
    day: date,
    model: str,
    account_id: int | None,
    reported_nano_usd: int,
    posted_nano_usd: int,
) -> bool:
    """Records it within the caller's transaction; whether it is new.

    The same export reconciled again is the same fact; another drift of the same day is another.
    `day` is UTC's; `account_id` is given where the export is split by account; `posted_nano_usd` is
    what stands after all that reconciliation could correct.
    """
    drift = reported_nano_usd - posted_nano_usd
    assert drift, "no drift is no alert"
    detail = {
        "provider": provider,
        "day": day.isoformat(),
        "model": model,
        "reported_nano_usd": reported_nano_usd,
        "posted_nano_usd": posted_nano_usd,
        "drift_nano_usd": drift,
    }
    key = f"drift:{provider}:{day.isoformat()}:{model}:{account_id or 0}:{drift}"
    new = await connection.fetchval(_INSERT, key, account_id, msgspec.json.encode(detail).decode())
    return new is not None
