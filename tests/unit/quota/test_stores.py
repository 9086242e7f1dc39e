"""What the stores do with answers that no real database gives on demand."""

from datetime import UTC, datetime
from typing import Any

import pytest

from penstock.core import errors
from penstock.core.ids import uuid7
from penstock.quota.ledger import Answer
from penstock.quota.store import adjust_store
from penstock.quota.store.ledger_store import Timed, apply_on
from support.ledger import reserve, settle, told

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


class Verdicts:
    """A connection on which the ledger gives these verdicts."""

    def __init__(self, *verdicts: tuple[Any, ...]) -> None:
        self._verdicts = verdicts

    async def fetch(self, *_: Any) -> tuple[tuple[Any, ...], ...]:
        return self._verdicts


def verdict(n: int, reason: str | None = None, facts: str | None = None) -> tuple[Any, ...]:
    return (n, reason, facts, 10, NOW, 90, 0, 0, False, False, NOW)


@pytest.mark.parametrize(
    "unreadable",
    [
        verdict(2, "A_REASON_OF_THE_NEXT_RELEASE"),
        verdict(2, "BUDGET_EXCEEDED", '{"budget_id": "seven"}'),
        verdict(2, "CREDIT_EXHAUSTED"),
        (*verdict(2), "a column of the next release"),
    ],
    ids=["reason", "facts", "no facts", "column"],
)
async def test_a_verdict_that_cannot_be_read_takes_no_other_answer_with_it(
    unreadable: tuple[Any, ...],
) -> None:
    operations = [reserve(uuid7(), 1), reserve(uuid7(), 1), settle(uuid7(), 5)]
    connection: Any = Verdicts(verdict(1), unreadable, verdict(3, "RESERVATION_UNKNOWN"))

    first, second, third = await apply_on(connection, [Timed(o) for o in operations])

    assert isinstance(first, Answer)
    assert (10, 90) == (first.amount_nano_usd, first.remaining_nano_usd)
    assert isinstance(second, errors.Internal)
    assert "RESERVATION_UNKNOWN" == told(third)


class Growing:
    """A connection on which a reservation lies in one more bucket at each of so many looks."""

    def __init__(self, looks: float) -> None:
        self.looks = 0
        self._looks_max = looks

    async def fetchrow(self, *_: Any) -> dict[str, Any]:
        if self.looks < self._looks_max:
            self.looks += 1
        return {"lies_in": list(range(self.looks))}

    async def fetch(self, _query: str, wanted: list[int]) -> list[dict[str, int]]:
        return [{"id": id_} for id_ in wanted]


async def test_a_reservation_that_grows_while_it_is_locked_is_locked_with_all_of_it() -> None:
    connection: Any = Growing(3)
    reservation, held = await adjust_store._lock_reservation(connection, uuid7())
    assert [0, 1, 2] == reservation["lies_in"] == [row["id"] for row in held]


async def test_a_reservation_that_never_stops_growing_is_busy() -> None:
    connection: Any = Growing(float("inf"))
    with pytest.raises(errors.Unavailable) as refused:
        await adjust_store._lock_reservation(connection, uuid7())
    assert "LEDGER_BUSY" == refused.value.reason
    assert refused.value.retry_after_seconds
    assert adjust_store.LOOKS_MAX == connection.looks
