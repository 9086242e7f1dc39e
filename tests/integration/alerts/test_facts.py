"""What the evaluator finds, in a real PostgreSQL."""

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest

from penstock.quota.alerts.drift import record_drift
from penstock.quota.alerts.evaluator import Evaluator
from support.alerts import DAY, START, Books

USD = 10**9


async def _forecast(books: Books) -> list[tuple[str, str]]:
    await books.evaluate()
    facts = await books.facts("budget_exhaustion_forecast")
    return [(fact["exhausted_at"], fact["window_ends_at"]) for fact in facts]


async def test_a_month_at_twice_its_rate_is_used_up_at_its_middle(books: Books) -> None:
    _, team, _ = await books.path()
    # 9.5 of 30 days have passed.
    await books.spending(team, "month", spent=60 * USD, limit=100 * USD)
    assert [("2026-11-16 20:00 UTC", "2026-12-01 00:00 UTC")] == await _forecast(books)


async def test_a_month_within_its_rate_is_not_forecast(books: Books) -> None:
    _, team, _ = await books.path()
    await books.spending(team, "month", spent=31 * USD, limit=100 * USD)
    assert [] == await _forecast(books)


@pytest.mark.parametrize(
    ("now", "spent", "expected"),
    [
        # 25 October 2026 in Berlin has 25 hours: noon is 13 hours in, so 52 % is its rate exactly…
        (datetime(2026, 10, 25, 11, tzinfo=UTC), 52, []),
        # … and one more is too much. By a day of 24 hours 51 % would have been, too.
        (
            datetime(2026, 10, 25, 11, tzinfo=UTC),
            53,
            [("2026-10-25 22:31 UTC", "2026-10-25 23:00 UTC")],
        ),
        # 29 March 2026 has 23 hours: noon is 11 in, 47.8 % is its rate.
        (datetime(2026, 3, 29, 10, tzinfo=UTC), 47, []),
        (
            datetime(2026, 3, 29, 10, tzinfo=UTC),
            48,
            [("2026-03-29 21:55 UTC", "2026-03-29 22:00 UTC")],
        ),
    ],
)
async def test_a_day_on_which_clocks_change_is_as_long_as_it_is(
    books: Books, now: datetime, spent: int, expected: list[tuple[str, str]]
) -> None:
    await books.set_clock(now)
    _, team, _ = await books.path()
    await books.spending(team, "day", spent=spent, limit=100, zone="Europe/Berlin")
    assert expected == await _forecast(books)


async def test_budgets_that_cannot_or_need_not_be_forecast_are_left_alone(books: Books) -> None:
    org, team, key = await books.path()
    await books.spending(org, "total", spent=99, limit=100)
    await books.spending(org, "hour", spent=99, limit=100)
    await books.spending(org, "day", spent=100, limit=100)
    await books.spending(team, "day", spent=0, limit=0)
    await books.spending(team, "week", spent=10**15, limit=None)
    closed = await books.spending(key, "month", spent=99, limit=100)
    await books.execute(
        "UPDATE budgets SET closed_at = ledger_now()"
        " WHERE id = (SELECT budget_id FROM buckets WHERE id = $1)",
        closed,
    )
    assert [] == await _forecast(books)


async def test_a_forecast_is_told_once_for_each_window_and_limit(books: Books) -> None:
    _, team, _ = await books.path()
    await books.spending(team, "month", spent=60, limit=100)
    await books.evaluate()
    await books.advance(timedelta(hours=1))
    assert 1 == len(await _forecast(books))
    await books.execute("UPDATE budgets SET limit_amount = 110")
    assert 2 == len(await _forecast(books))


async def test_suspense_is_summed_by_hour_once_the_whole_hour_is_too_old(books: Books) -> None:
    org, _, key = await books.path()
    first = await books.suspected(org, key, 7, START - DAY - timedelta(minutes=50))
    await books.suspected(org, key, 5, START - DAY - timedelta(minutes=10))
    await books.suspected(org, key, 100, START - DAY)
    await books.evaluate()
    (fact,) = await books.facts("suspense_old")
    assert (2, 12, 24, "openai", first) == (
        fact["reservations"],
        fact["suspense_nano_usd"],
        fact["older_than_hours"],
        fact["provider"],
        fact["oldest_reservation_ids"][0],
    )
    await books.advance(timedelta(minutes=59))
    await books.evaluate()
    assert 1 == len(await books.facts("suspense_old"))
    await books.advance(timedelta(minutes=1))
    await books.evaluate()
    assert [12, 100] == [f["suspense_nano_usd"] for f in await books.facts("suspense_old")]


async def test_resolved_suspense_is_not_told(books: Books) -> None:
    org, _, key = await books.path()
    id_ = await books.suspected(org, key, 7, START - 2 * DAY)
    await books.execute("UPDATE reservations SET state = 'settled' WHERE id = $1", id_)
    await books.evaluate()
    assert [] == await books.facts("suspense_old")


async def test_a_grant_is_told_a_week_and_a_day_before_its_end(books: Books) -> None:
    org, _, _ = await books.path()
    end = START + 8 * DAY
    await books.grant(org, amount=18, posted=5, starts_at=START - 80 * DAY, expires_at=end)
    told = []
    for _ in range(9):
        await books.evaluate()
        told.append([f["notice_days"] for f in await books.facts("grant_expiring")])
        await books.advance(DAY)
    assert [[], [7], [7], [7], [7], [7], [7], [7, 1], [7, 1]] == told
    assert {13} == {f["unused_nano_usd"] for f in await books.facts("grant_expiring")}


async def test_grants_that_are_used_up_or_short_or_endless_are_not_told(books: Books) -> None:
    org, _, _ = await books.path()
    soon, never = START + timedelta(hours=20), datetime(9999, 1, 1, tzinfo=UTC)
    await books.grant(org, amount=5, posted=5, starts_at=START - 9 * DAY, expires_at=soon)
    await books.grant(org, amount=5, posted=0, starts_at=START, expires_at=soon)
    await books.grant(org, amount=5, posted=0, starts_at=START + DAY, expires_at=START + 2 * DAY)
    endless = await books.grant(org, amount=5, posted=0, starts_at=START - DAY, expires_at=never)
    await books.execute("UPDATE grants SET expires_at = 'infinity' WHERE id = $1", endless)
    await books.evaluate()
    assert [] == await books.facts("grant_expiring")


async def test_drift_is_told_once_and_again_where_it_has_changed(books: Books) -> None:
    org, _, _ = await books.path()
    new = []
    for reported in (12, 12, 13):
        async with books.database.connection() as connection:
            new.append(
                await record_drift(
                    connection,
                    provider="openai",
                    day=date(2026, 11, 9),
                    model="gpt-4o-mini",
                    account_id=org,
                    reported_nano_usd=reported,
                    posted_nano_usd=10,
                )
            )
    assert [True, False, True] == new
    assert [2, 3] == [f["drift_nano_usd"] for f in await books.facts("drift")]


async def test_many_evaluators_at_once_record_each_fact_once(books: Books) -> None:
    org, team, key = await books.path()
    for account in (org, team, key):
        await books.spending(account, "month", spent=60, limit=100)
    await books.suspected(org, key, 7, START - 2 * DAY)
    evaluators = [
        # Always due: not the schedule, but the key makes a fact once.
        Evaluator(books.database, suspense_age=DAY, every=timedelta(0))
        for _ in range(8)
    ]
    await asyncio.gather(*(evaluator.run() for evaluator in evaluators))
    assert 4 == await books.value("SELECT count(*) FROM alerts")


async def test_a_check_that_ran_a_moment_ago_does_not_run_again(books: Books) -> None:
    _, team, _ = await books.path()
    evaluator = Evaluator(books.database, suspense_age=DAY)
    await evaluator.run()
    await books.spending(team, "month", spent=60, limit=100)
    await books.advance(timedelta(minutes=4))
    await evaluator.run()
    assert 0 == await books.value("SELECT count(*) FROM alerts")
    await books.advance(timedelta(minutes=1))
    await evaluator.run()
    assert 1 == await books.value("SELECT count(*) FROM alerts")
