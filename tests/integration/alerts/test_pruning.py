"""What is long over is deleted, and what could be told again is not."""

import asyncio
from datetime import timedelta

import pytest

from penstock.quota.alerts import evaluator, pruning
from penstock.quota.alerts.config import SUSPENSE_HOURS_MAX
from penstock.quota.alerts.pruning import KEPT_FOR, prune_page
from penstock.quota.ledger import ID_HORIZON_MS
from support.alerts import DAY, Books, webhook
from support.webhook_receiver import receiver

MONTH_MAX = timedelta(days=31)


def test_an_alert_is_kept_for_longer_than_its_key_can_come_again() -> None:
    ids_ahead = DAY
    assert KEPT_FOR > timedelta(milliseconds=ID_HORIZON_MS) + ids_ahead
    assert KEPT_FOR > MONTH_MAX
    assert KEPT_FOR > evaluator.SUSPENSE_BACK + timedelta(hours=SUSPENSE_HOURS_MAX)
    assert KEPT_FOR > timedelta(days=max(evaluator.GRANT_NOTICES_DAYS))


async def told(books: Books) -> list[int]:
    """Everything that there is, put on its way to nobody; its ids."""
    await books.execute("UPDATE alerts SET routed_at = ledger_now() WHERE routed_at IS NULL")
    return await ids(books)


async def ids(books: Books) -> list[int]:
    return [row["id"] for row in await books.fetch("SELECT id FROM alerts ORDER BY id")]


async def threshold(books: Books, bucket: int) -> int:
    created: int = await books.value(
        "INSERT INTO alerts (alert_key, kind, at, account_id, detail)"
        " VALUES ($1, 'budget_threshold', ledger_now(), NULL, '{}') RETURNING id",
        f"threshold:{bucket}:50",
    )
    return created


async def test_a_delivered_alert_goes_after_its_time_with_its_deliveries(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as good, receiver(410) as gone:
        alerts = books.alerts(webhook(good), webhook(gone))
        old = await books.overage(key)
        await alerts.route()
        for to in (good, gone):
            await alerts.deliver(webhook(to))
        await books.advance(KEPT_FOR - DAY)
        recent = await books.overage(key)
        await alerts.route()
        await books.evaluate()
        assert [old, recent] == await ids(books)

        await books.advance(2 * DAY)
        await books.evaluate()

    assert [recent] == await ids(books)
    left = await books.fetch("SELECT DISTINCT alert_id FROM alert_deliveries")
    assert [recent] == [row["alert_id"] for row in left]


async def test_what_nobody_was_told_of_or_is_still_tried_stays(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as to:
        alerts = books.alerts(webhook(to))
        tried, unrouted = await books.overage(key), None
        await alerts.route()
        await books.advance(KEPT_FOR + DAY)
        # A process has it in hand just now.
        await books.execute("UPDATE alert_deliveries SET next_try_at = ledger_now()")
        unrouted = await books.overage(key)
        await books.execute(
            "UPDATE alerts SET at = ledger_now() - $2::interval WHERE id = $1",
            unrouted, KEPT_FOR + DAY,
        )  # fmt: skip
        await books.evaluate()
        assert [tried, unrouted] == await ids(books)
        await alerts.route()
        while await alerts.deliver(webhook(to)):
            pass
        assert 2 == len(to.received)
        await books.evaluate()
    assert [] == await ids(books)


async def test_one_on_its_way_to_a_webhook_that_was_taken_away_goes_in_the_end(
    books: Books,
) -> None:
    _, _, key = await books.path()
    async with receiver() as to:
        await books.overage(key)
        await books.alerts(webhook(to)).route()
    await books.advance(KEPT_FOR + DAY)
    await books.evaluate()
    assert ([], 0) == (await ids(books), await books.value("SELECT count(*) FROM alert_deliveries"))


@pytest.mark.parametrize(
    ("kind", "change", "is_gone"),
    [
        ("month", "UPDATE buckets SET posted = posted", True),
        ("month", "UPDATE buckets SET suspense = 1", False),
        ("month", "UPDATE buckets SET held = 1", False),
        ("total", "UPDATE buckets SET posted = posted", False),
        ("total", "UPDATE budgets SET closed_at = '2026-12-01'", True),
        ("total", "UPDATE budgets SET closed_at = ledger_now()", False),
        ("month", "DELETE FROM buckets", True),
    ],
)
async def test_a_threshold_goes_when_its_window_is_over_for_good(
    books: Books, kind: str, change: str, is_gone: bool
) -> None:
    _, _, key = await books.path()
    alert = await threshold(books, await books.spending(key, kind, spent=50, limit=100))
    await told(books)
    # 90 days after the alert, but not after November's end.
    await books.advance(KEPT_FOR + DAY)
    await books.evaluate()
    assert [alert] == await ids(books)

    await books.advance(30 * DAY)
    await books.execute(change)
    await books.evaluate()

    assert ([] if is_gone else [alert]) == await ids(books)


async def test_a_drift_stays_as_its_day_may_be_reconciled_again(books: Books) -> None:
    await books.execute(
        "INSERT INTO alerts (alert_key, kind, at, detail)"
        " VALUES ('drift:openai:2026-11-09:gpt-4o:0:5', 'drift', ledger_now(), '{}')"
    )
    kept = await told(books)
    await books.advance(10 * KEPT_FOR)
    await books.evaluate()
    assert kept == await ids(books)


async def test_it_goes_on_behind_what_it_keeps_a_page_at_a_time(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, key = await books.path()
    total = await books.spending(key, "total", spent=50, limit=100)
    kept = [await threshold(books, total)]
    for _ in range(7):
        await books.overage(key)
    await told(books)
    await books.advance(KEPT_FOR + DAY)
    kept += [await books.overage(key) for _ in range(3)]
    pages: list[tuple[int, int]] = []

    async def page_of_two(connection, after_id):
        last, gone = await prune_page(connection, after_id, page_alerts=2)
        pages.append((after_id, gone))
        return last, gone

    monkeypatch.setattr(evaluator, "prune_page", page_of_two)
    await books.evaluate()

    assert kept == await ids(books)
    # The fifth page has none that is old: it does not read the rest.
    assert [1, 2, 2, 2, 0] == [gone for _, gone in pages]


async def test_two_processes_that_prune_at_once_delete_each_once(books: Books) -> None:
    _, _, key = await books.path()
    for _ in range(20):
        await books.overage(key)
    await told(books)
    await books.advance(KEPT_FOR + DAY)

    async def one() -> int:
        async with books.database.connection() as connection:
            return (await prune_page(connection, 0))[1]

    assert 20 == sum(await asyncio.gather(one(), one(), one()))
    assert [] == await ids(books)


async def test_it_is_due_once_an_hour(books: Books) -> None:
    _, _, key = await books.path()
    await books.overage(key)
    await told(books)
    await books.evaluate()
    await books.advance(KEPT_FOR + DAY)
    await books.execute("UPDATE alert_checks SET ran_at = ledger_now() WHERE name = 'prune'")
    run = evaluator.Evaluator(books.database, suspense_age=DAY).run
    await books.advance(pruning.PRUNE_EVERY - timedelta(seconds=1))
    await run()
    assert 1 == len(await ids(books))
    await books.advance(timedelta(seconds=1))
    await run()
    assert [] == await ids(books)
