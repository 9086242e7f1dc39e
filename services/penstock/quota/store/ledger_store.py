"""Batches of operations into PostgreSQL: one round trip, one commit."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from penstock.core import errors
from penstock.quota.ledger import (
    ID_HORIZON_MS,
    Answer,
    Operation,
    Refusal,
    Reserve,
    Settle,
    refused,
)
from penstock.quota.store.database import Database

logger = logging.getLogger(__name__)

TRIES_MAX = 6
"""Of a batch that met a deadlock, or an id that another process took at the same moment."""
_BACKOFF_SECONDS = 0.005
_TRANSIENT = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
)
_encode = msgspec.json.Encoder().encode
_decode_refusal = msgspec.json.Decoder(Refusal).decode

Outcome = Answer | errors.PenstockError


@dataclass(frozen=True, slots=True)
class Timed:
    """An operation and how long its caller still waits; None: for ever."""

    operation: Operation
    left_ms: int | None = None


class LedgerStore:
    """The ledger over one PostgreSQL. Safe to use from many tasks and processes at once."""

    def __init__(self, database: Database, jitter: Callable[[], float] = random.random) -> None:
        self._database = database
        self._jitter = jitter

    async def apply(self, batch: Sequence[Timed]) -> list[Outcome]:
        """Applies the operations in order; each has its own answer or error.

        Raises:
            Unavailable: none has an answer; whether any was applied is not known. Ask again with
                the same ids.
        """
        for attempt in range(1, TRIES_MAX + 1):
            try:
                return await self._apply_once(batch)
            except _TRANSIENT as error:
                if attempt == TRIES_MAX:
                    raise errors.Unavailable(
                        "too many batches touch the same accounts; try again", reason="LEDGER_BUSY"
                    ) from error
            except asyncpg.PostgresError as error:
                if len(batch) == 1:
                    logger.exception("the ledger refused an operation for a reason of its own")
                    return [errors.Internal(f"the ledger failed ({type(error).__name__})")]
                # One faulty operation must not take the others with it.
                return [(await self.apply([one]))[0] for one in batch]
            await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt * self._jitter())
        raise AssertionError

    async def sweep(self) -> int:
        """Resolves expired holds that no reserve has met; how many organisations had any.

        Only keeps tables and figures fresh: nothing depends on it (LEDGER, I8).
        """
        async with self._database.connection() as connection:
            orgs = await connection.fetch(
                "SELECT DISTINCT org_id FROM reservations"
                " WHERE state = 'held' AND expires_at <= ledger_now()"
            )
            for row in orgs:
                await connection.execute(
                    "SELECT apply_batch('[]', $1, ARRAY[$2::bigint])", ID_HORIZON_MS, row["org_id"]
                )
        return len(orgs)

    async def org_ids(
        self, key_ids: Sequence[int], reservation_ids: Sequence[str]
    ) -> tuple[dict[int, int], dict[str, int]]:
        """The organisation of each key and of each reservation that exists."""
        async with self._database.connection() as connection:
            keys = await connection.fetch(
                "SELECT id, org_id FROM accounts WHERE id = ANY($1) AND kind = 'key'", key_ids
            )
            reservations = await connection.fetch(
                "SELECT id, org_id FROM reservations WHERE id = ANY($1) AND org_id IS NOT NULL",
                reservation_ids,
            )
        return (
            {row["id"]: row["org_id"] for row in keys},
            {str(row["id"]): row["org_id"] for row in reservations},
        )

    async def _apply_once(self, batch: Sequence[Timed]) -> list[Outcome]:
        payload = _encode([_record(n, timed) for n, timed in enumerate(batch, 1)]).decode()
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT * FROM apply_batch($1, $2)", payload, ID_HORIZON_MS
            )
        assert len(rows) == len(batch)
        return [_outcome(row, batch[row["n"] - 1].operation) for row in rows]


def _record(n: int, timed: Timed) -> dict[str, Any]:
    operation = timed.operation
    record: dict[str, Any] = {
        "n": n,
        "id": operation.reservation_id,
        "id_ms": operation.id_unix_ms,
    }
    if isinstance(operation, Reserve):
        record |= {
            "op": "reserve",
            "left_ms": timed.left_ms,
            "key_id": operation.key_id,
            "request_id": operation.request_id,
            "attempt": operation.attempt,
            "pool": operation.pool,
            "provider": operation.provider,
            "model": operation.model,
            "amount": operation.amount_nano_usd,
            "ttl_ms": operation.ttl_ms,
            "end_user": operation.end_user,
            "tags": operation.tags,
        }
    elif isinstance(operation, Settle):
        record |= {
            "op": "settle",
            "amount": operation.amount_nano_usd,
            "prompt_tokens": operation.prompt_tokens,
            "cached_prompt_tokens": operation.cached_prompt_tokens,
            "completion_tokens": operation.completion_tokens,
            "reasoning_tokens": operation.reasoning_tokens,
            "estimated": operation.estimated,
            "outcome": operation.outcome,
            "trace_id": operation.trace_id,
        }
    else:
        record |= {"op": "void", "outcome": operation.outcome}
    return record


def _outcome(row: asyncpg.Record, operation: Operation) -> Outcome:
    reason = row["reason"]
    if reason is None:
        if row["overage"] or row["late"]:
            # The money is gone: posted anyway, and it blocks the budget by itself (LEDGER, I6).
            logger.warning(
                "reservation %s: %s nano-USD posted, overage %s, late %s",
                operation.reservation_id,
                row["posted"],
                row["overage"],
                row["late"],
            )
        return Answer(
            expires_at=row["expires_at"],
            remaining_nano_usd=row["remaining"],
            posted_nano_usd=row["posted"],
            released_nano_usd=row["released"],
            overage=row["overage"],
            late=row["late"],
        )
    refusal = _decode_refusal(row["refusal"]) if reason == "BUDGET_EXCEEDED" else None
    return refused(reason, operation, refusal)
