"""What an operator found out about an abandoned paid attempt, posted with who says so."""

import asyncpg

from penstock.core import errors
from penstock.quota.ledger import Answer, Settle
from penstock.quota.store.changes import Change, changing
from penstock.quota.store.database import Database, busy
from penstock.quota.store.ledger_store import Timed, apply_on


class ResolveStore:
    """A settle in the operator's own transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def resolve(self, change: Change, settle: Settle) -> Answer:
        """Posts it and releases the rest, as a late settle does; a repeat gets the first answer.

        Raises what a settle raises.
        """
        try:
            async with changing(self._database, change) as writing:
                before = await writing.connection.fetchrow(
                    "SELECT state, key_id FROM reservations WHERE id = $1", settle.reservation_id
                )
                (outcome,) = await apply_on(writing.connection, [Timed(settle)])
                if isinstance(outcome, errors.PenstockError):
                    raise outcome
                assert before is not None
                if before["state"] != "settled":
                    await writing.configure(
                        before["key_id"],
                        "resolve_suspense",
                        {"reservation_id": settle.reservation_id, "state": before["state"]},
                        {
                            "reservation_id": settle.reservation_id,
                            "state": "settled",
                            "posted_nano_usd": outcome.posted_nano_usd,
                        },
                    )
        except asyncpg.UniqueViolationError as error:
            raise busy("the reservation") from error
        return outcome
