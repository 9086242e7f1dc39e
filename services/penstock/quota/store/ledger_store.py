"""Batches of operations into PostgreSQL: one round trip, one commit."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import msgspec

from penstock.core import errors, postgres
from penstock.quota.ledger import (
    ID_HORIZON_MS,
    Answer,
    Extend,
    Operation,
    Reserve,
    Settle,
)
from penstock.quota.refusals import refused
from penstock.quota.store.database import BUSY, Database

logger = logging.getLogger(__name__)

TRIES_MAX = 6
"""Of a batch that met a deadlock, or an id that another process took at the same moment."""
PREVIEWS_MAX = 1
"""At once: they are few, and connections are for what is meant."""
PREVIEW_LOCK_TIMEOUT_MS = 250
"""Far less than a batch waits: whoever comes behind a preview must not run out of patience."""
_BACKOFF_SECONDS = 0.005
_TRANSIENT = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
)
_encode = msgspec.json.Encoder().encode

Outcome = Answer | errors.PenstockError
_Once = Callable[[Sequence["Timed"]], Awaitable[list[Outcome]]]


class Timed(msgspec.Struct, frozen=True, gc=False):
    """An operation and how long its caller still waits; None: for ever."""

    operation: Operation
    left_ms: int | None = None


class LedgerStore:
    """The ledger over one PostgreSQL. Safe to use from many tasks and processes at once."""

    def __init__(self, database: Database, jitter: Callable[[], float] = random.random) -> None:
        self._database = database
        self._jitter = jitter
        self._preview_room = asyncio.Semaphore(PREVIEWS_MAX)

    async def apply(self, batch: Sequence[Timed]) -> list[Outcome]:
        """Applies the operations in order; each has its own answer or error.

        Raises:
            Unavailable: none has an answer; whether any was applied is not known. Ask again with
                the same ids.
        """
        return await self._tried(self._apply_once, batch)

    async def preview(self, reserve: Timed) -> Outcome:
        """What `apply` would answer now. It is applied, and taken back with all that it did.

        Raises:
            Unavailable: there is no answer.
        """
        async with self._preview_room:
            (outcome,) = await self._tried(self._preview_once, [reserve])
        return outcome

    async def _tried(self, once: _Once, batch: Sequence[Timed]) -> list[Outcome]:
        for attempt in range(1, TRIES_MAX + 1):
            try:
                return await once(batch)
            except _TRANSIENT as error:
                if attempt == TRIES_MAX:
                    raise errors.Unavailable(
                        "too many batches touch the same accounts; try again", reason=BUSY
                    ) from error
            except asyncpg.PostgresError as error:
                if len(batch) == 1:
                    logger.exception("the ledger refused an operation for a reason of its own")
                    return [errors.Internal(f"the ledger failed ({type(error).__name__})")]
                # One faulty operation must not take the others with it.
                return [(await self._tried(once, [one]))[0] for one in batch]
            await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt * self._jitter())
        raise AssertionError

    async def warm(self, connections: int) -> None:
        """Opens so many connections and has each make its plans: a batch that had to would take
        several times as long.

        Raises:
            Unavailable: PostgreSQL is away.
        """
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(self._database.connection())
                for _ in range(connections)
            ]
            for connection in opened:
                await apply_on(connection, [])

    async def sweep(self) -> int:
        """Resolves expired holds that no reserve has met, and lapses what ended grants have left;
        how many batches it took.

        Only keeps tables and figures fresh: nothing depends on it (LEDGER, I8).
        """
        batches = 0
        # One whose rows somebody keeps locked is left for the next time.
        busy: set[int] = set()
        while orgs := await self._orgs_with_abandoned_holds(busy):
            for org_id in orgs:
                if not await self._sweep_one(org_id):
                    busy.add(org_id)
            batches += len(orgs)
        async with self._database.connection() as connection:
            await connection.execute("SELECT lapse_grants()")
        return batches

    async def _orgs_with_abandoned_holds(self, except_ids: set[int]) -> list[int]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT DISTINCT org_id FROM reservations WHERE state = 'held'"
                " AND expires_at <= ledger_now() AND org_id <> ALL ($1::bigint[])",
                list(except_ids),
            )
        return [row["org_id"] for row in rows]

    async def _sweep_one(self, org_id: int) -> bool:
        try:
            async with self._database.connection() as connection:
                await connection.execute(
                    "SELECT apply_batch('{}', $1, ARRAY[$2::bigint])", ID_HORIZON_MS, org_id
                )
        except _TRANSIENT:
            return False
        except errors.Unavailable as error:
            if error.reason != BUSY:
                raise
            return False
        return True

    async def org_ids(self, key_ids: Sequence[int]) -> dict[int, int]:
        """The organisation of each key that exists."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT id, org_id FROM accounts WHERE id = ANY($1) AND kind = 'key'", key_ids
            )
        return {row["id"]: row["org_id"] for row in rows}

    async def _apply_once(self, batch: Sequence[Timed]) -> list[Outcome]:
        async with self._database.connection() as connection:
            return await apply_on(connection, batch)

    async def _preview_once(self, batch: Sequence[Timed]) -> list[Outcome]:
        async with self._database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute(f"SET LOCAL lock_timeout = {PREVIEW_LOCK_TIMEOUT_MS}")
                return await apply_on(connection, batch)
            finally:
                await transaction.rollback()


async def apply_on(connection: postgres.Connection, batch: Sequence[Timed]) -> list[Outcome]:
    """Within a transaction of the caller's, who answers for its conflicts."""
    rows = [row(n, timed) for n, timed in enumerate(batch, 1)]
    verdicts = await connection.fetch("SELECT * FROM apply_batch($1, $2)", rows, ID_HORIZON_MS)
    assert len(verdicts) == len(batch)
    return [_told(v, one.operation) for v, one in zip(verdicts, batch, strict=True)]


# Fields of `ledger_operation`, in its order: what an operation has not is NULL.
_NO_RESERVE = (None,) * 10
_NO_USAGE = (None,) * 7


def row(n: int, timed: Timed) -> tuple[Any, ...]:
    """A `ledger_operation`; `n`: its place in the batch, from 1."""
    o = timed.operation
    if isinstance(o, Reserve):
        return (
            *(n, "reserve", o.reservation_id, o.id_unix_ms, timed.left_ms),
            *(o.key_id, o.request_id, o.attempt, o.pool, o.provider, o.model),
            *(o.amount_nano_usd, o.tokens, o.ttl_ms),
            *(o.end_user, _encode(o.tags).decode() if o.tags else "{}"),
            *_NO_USAGE,
        )
    head = (n, type(o).__name__.lower(), o.reservation_id, o.id_unix_ms, timed.left_ms)
    if isinstance(o, Settle):
        return (
            *head,
            *(o.key_id, None, None, None, None, None),
            *(o.amount_nano_usd, o.prompt_tokens + o.completion_tokens, None, None, None),
            *(o.prompt_tokens, o.cached_prompt_tokens, o.completion_tokens, o.reasoning_tokens),
            *(o.estimated, o.outcome, o.trace_id),
        )
    if isinstance(o, Extend):
        return (
            *head,
            *(o.key_id, None, None, None, None, None),
            *(o.amount_nano_usd, o.tokens, o.ttl_ms, None, None),
            *_NO_USAGE,
        )
    return (*head, o.key_id, *_NO_RESERVE, *_NO_USAGE[:5], o.outcome, None)


def _told(verdict: asyncpg.Record, operation: Operation) -> Outcome:
    """One that cannot be read, say of a newer schema, must not take the others' answers with it."""
    try:
        return _outcome(verdict, operation)
    except Exception as error:
        logger.exception("the verdict on %s cannot be read", operation.reservation_id)
        return errors.Internal(f"the ledger's answer cannot be read ({type(error).__name__})")


def _outcome(verdict: asyncpg.Record, operation: Operation) -> Outcome:
    _, reason, facts, amount, expires_at, remaining, posted, released, overage, late, at = verdict
    if reason is not None:
        return refused(reason, operation, facts, at)
    return Answer(
        amount_nano_usd=amount,
        expires_at=expires_at,
        remaining_nano_usd=remaining,
        posted_nano_usd=posted,
        released_nano_usd=released,
        overage=overage,
        late=late,
    )
