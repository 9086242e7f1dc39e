"""What is no longer in the ledger is told where somebody looks for it."""

from datetime import timedelta
from typing import Any

from penstock.core.ids import uuid7
from penstock.quota.audit import detach, seal
from support.ledger import reserve, settle, told
from support.operating import Operator


async def spent(operator: Operator, key_id: int, amount: int) -> str:
    ledger, id_ = operator.ledger, uuid7()
    assert told(await ledger.one(reserve(id_, key_id, amount))) == "ok"
    assert told(await ledger.one(settle(id_, amount))) == "ok"
    return id_


async def put_away(operator: Operator) -> None:
    dsn = operator.ledger.dsn
    assert (await seal(dsn)).ok
    await detach(dsn, keep=0)


async def closed_at(operator: Operator, epoch: int) -> Any:
    (row,) = await operator.ledger.fetch("SELECT closed_at FROM epochs WHERE id = $1", epoch)
    return row["closed_at"]


async def test_entries_and_usage_tell_where_the_older_ones_are(own_operator: Operator) -> None:
    operator = own_operator
    key = await operator.ledger.new_key(1_000)
    await spent(operator, key, 5)
    for words in (("ledger", "entries"), ("usage",)):
        assert "detached" not in (await operator.json(*words))
    await put_away(operator)
    await spent(operator, key, 7)
    await put_away(operator)
    before = await closed_at(operator, 2)
    note = (
        f"entries before {before:%Y-%m-%d %H:%M:%S.%f} UTC were detached: they lie in"
        " entries_archive_2 and entries_archive_1 of the ledger's database"
    )

    for words in (("ledger", "entries"), ("ledger", "usage"), ("usage",)):
        assert note in await operator.said(*words)
        tables = (await operator.json(*words))["detached"]["tables"]
        assert ["entries_archive_2", "entries_archive_1"] == tables
    # Of a time of which all are there, nothing is told.
    later = (before + timedelta(seconds=1)).isoformat()
    assert "detached" not in await operator.said("ledger", "entries", "--since", later)
    assert "detached" not in await operator.json("usage", "--since", later)
    until = (await closed_at(operator, 1)).isoformat()
    assert ["entries_archive_1"] == (await operator.json("ledger", "entries", "--until", until))[
        "detached"
    ]["tables"]


async def test_the_note_comes_with_the_last_page(own_operator: Operator) -> None:
    operator = own_operator
    key = await operator.ledger.new_key(1_000)
    await put_away(operator)
    await spent(operator, key, 5)
    pages = ("ledger", "entries", "--page-size", "1")

    first = await operator.json(*pages)
    every = await operator.json(*pages, "--all")

    assert (1, False) == (len(first["entries"]), "detached" in first)
    assert ["entries_archive_1"] == every["detached"]["tables"]


async def test_archives_that_were_dropped_are_not_named(own_operator: Operator) -> None:
    operator = own_operator
    await operator.ledger.new_key(1_000)
    await put_away(operator)
    await operator.ledger.execute("DROP TABLE entries_archive_1")

    assert "were detached: they are no longer there" in await operator.said("ledger", "entries")


async def test_a_repeated_adjustment_whose_entry_was_detached_is_told_as_made(
    own_operator: Operator,
) -> None:
    operator = own_operator
    key = await operator.ledger.new_key(1_000)
    id_ = await spent(operator, key, 5)
    words = (
        "ledger",
        "adjust",
        "0.000000004",
        "--reservation",
        id_,
        "--key",
        "twice",
        "--reason",
        "x",
    )
    await operator.said(*words)
    await put_away(operator)

    refused = await operator.refused(*words)

    assert "ENTRY_DETACHED" in refused
    assert "adjustment 'twice' was made" in refused
    assert await operator.ledger.balances("key", key) == (9, 0, 0)
