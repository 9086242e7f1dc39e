"""Windows are keyed, never reset (LEDGER, I10): calendars in time zones, over clock changes."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from penstock.quota.refusals import BudgetRefused
from support.ledger import Ledger, reserve, settle, told


def month_end(zone: str, year: int, month: int) -> datetime:
    """The first instant whose local date lies in the next month, by bisection."""
    tz = ZoneInfo(zone)
    following = (year + month // 12, month % 12 + 1)
    low = datetime(year, month, 20, tzinfo=UTC)
    high = low + timedelta(days=20)
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        local = middle.astimezone(tz)
        if (local.year, local.month) >= following:
            high = middle
        else:
            low = middle
    return high.replace(microsecond=0)


# Zone, a month at whose end the clocks do something, and what.
EDGES = [
    ("UTC", 2026, 11, "nothing"),
    ("Europe/Berlin", 2026, 3, "summer time began two days before"),
    ("Europe/Berlin", 2027, 10, "winter time begins on the last day"),
    ("America/New_York", 2026, 10, "winter time begins on the first"),
    ("America/Havana", 2026, 10, "midnight of the first comes twice"),
    ("America/Asuncion", 2017, 9, "midnight of the first does not exist"),
    ("Asia/Kolkata", 2026, 2, "half an hour"),
    ("Pacific/Kiritimati", 2026, 12, "14 hours ahead"),
    ("Pacific/Pago_Pago", 2026, 12, "11 hours behind"),
    ("Australia/Lord_Howe", 2026, 4, "half an hour of daylight saving"),
]


@pytest.mark.parametrize(
    ("zone", "year", "month"), [e[:3] for e in EDGES], ids=[f"{e[0]}-{e[3]}" for e in EDGES]
)
async def test_a_month_ends_when_the_local_calendar_says(
    ledger: Ledger, zone: str, year: int, month: int
) -> None:
    end = month_end(zone, year, month)
    await ledger.set_clock(end - timedelta(seconds=1))
    key_id = await ledger.new_key(100, "month", zone)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 100))) == "ok"
    full = await ledger.one(reserve(ledger.id(), key_id, 1))
    assert isinstance(full, BudgetRefused)
    assert full.facts.resets_at == end

    await ledger.set_clock(end)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 100))) == "ok"


@pytest.mark.parametrize("window", ["day", "week", "month"])
async def test_every_instant_lies_in_the_window_that_the_calendar_says(
    ledger: Ledger, window: str
) -> None:
    rng = random.Random(20261124)
    zones = ["Europe/Berlin", "America/Havana", "Asia/Kathmandu", "America/St_Johns", "UTC"]
    for zone in zones:
        instants = [
            datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=rng.randrange(3 * 365 * 86_400))
            for _ in range(200)
        ]
        rows = await ledger.fetch(
            "SELECT window_key($3::window_kind, $1, at) AS key FROM unnest($2::timestamptz[])"
            " WITH ORDINALITY AS u (at, n) ORDER BY n",
            zone,
            instants,
            window,
        )
        days = [i.astimezone(ZoneInfo(zone)).date() for i in instants]
        first = {
            "day": lambda day: day,
            "week": lambda day: day - timedelta(days=day.weekday()),
            "month": lambda day: day.replace(day=1),
        }[window]
        assert [first(day) for day in days] == [row["key"].date() for row in rows]


# Window, zone, and the instant at which the window ends, in UTC.
ENDS = [
    ("minute", "Europe/Berlin", "2026-03-29T01:00:00"),
    ("minute", "Asia/Kolkata", "2026-11-24T12:31:00"),
    ("hour", "UTC", "2026-11-24T13:00:00"),
    ("hour", "Asia/Kathmandu", "2026-11-24T13:00:00"),
    ("hour", "Australia/Lord_Howe", "2026-04-04T15:00:00"),
    ("day", "UTC", "2026-11-25T00:00:00"),
    ("day", "Europe/Berlin", "2026-03-29T22:00:00"),
    ("day", "Europe/Berlin", "2026-10-25T23:00:00"),
    ("day", "America/Havana", "2026-11-01T04:00:00"),
    ("day", "America/Havana", "2026-03-08T05:00:00"),
    ("day", "Asia/Kathmandu", "2026-11-24T18:15:00"),
    ("day", "Australia/Lord_Howe", "2026-04-04T13:00:00"),
    ("week", "UTC", "2026-11-30T00:00:00"),
    ("week", "America/New_York", "2026-11-02T05:00:00"),
    ("week", "America/New_York", "2026-03-09T04:00:00"),
    ("week", "Pacific/Kiritimati", "2026-11-29T10:00:00"),
    ("month", "Asia/Tokyo", "2026-11-30T15:00:00"),
]


@pytest.mark.parametrize(("window", "zone", "text"), ENDS, ids=["-".join(e) for e in ENDS])
async def test_a_window_ends_at_its_instant_and_says_so_before(
    ledger: Ledger, window: str, zone: str, text: str
) -> None:
    end = datetime.fromisoformat(text).replace(tzinfo=UTC)
    await ledger.set_clock(end - timedelta(seconds=1))
    key_id = await ledger.new_key(100, window, zone)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 100))) == "ok"
    full = await ledger.one(reserve(ledger.id(), key_id, 1))
    assert isinstance(full, BudgetRefused)
    assert (full.facts.resets_at, full.facts.time_zone) == (end, zone)

    await ledger.set_clock(end)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 100))) == "ok"


async def test_the_hour_that_comes_twice_is_two_hours_of_one_day(ledger: Ledger) -> None:
    await ledger.set_clock(datetime(2026, 10, 25, 0, 30, tzinfo=UTC))  # 02:30 in Berlin, summer
    key_id = await ledger.new_key(100, "day", "Europe/Berlin")
    await ledger.budget("key", key_id, 60, "hour", "Europe/Berlin")
    assert told(await ledger.one(reserve(ledger.id(), key_id, 60))) == "ok"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_EXCEEDED"

    await ledger.advance(timedelta(hours=1))  # 02:30 again, winter

    assert told(await ledger.one(reserve(ledger.id(), key_id, 41))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 40))) == "ok"


async def test_all_windows_of_an_account_hold_together(ledger: Ledger) -> None:
    key_id = await ledger.new_key(None)
    windows = ["minute", "hour", "day", "week", "month"]
    for place, window in enumerate(windows):
        await ledger.budget("key", key_id, 51 + place, window)

    assert told(await ledger.one(reserve(ledger.id(), key_id, 52))) == "BUDGET_EXCEEDED"
    assert told(await ledger.one(reserve(ledger.id(), key_id, 51))) == "ok"
    assert {(0, 51, 0)} == {await ledger.balances("key", key_id, window) for window in windows}

    await ledger.advance(timedelta(minutes=1))
    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "ok"
    # What was held in the last minute is in suspense: it still counts in the hour.
    assert await ledger.balances("key", key_id, "hour") == (0, 1, 51)
    assert await ledger.balances("key", key_id, "minute") == (0, 1, 0)


async def test_a_hold_belongs_to_the_window_in_which_it_was_made(ledger: Ledger) -> None:
    await ledger.set_clock(datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC))
    key_id = await ledger.new_key(100, "month")
    id_ = ledger.id()
    assert told(await ledger.one(reserve(id_, key_id, 70))) == "ok"

    await ledger.set_clock(datetime(2026, 12, 1, 0, 0, 10, tzinfo=UTC))
    assert told(await ledger.one(reserve(ledger.id(), key_id, 100))) == "ok"
    assert told(await ledger.one(settle(id_, 60))) == "ok"

    assert await ledger.balances("key", key_id, "month") == (0, 100, 0)
    rows = await ledger.fetch(
        "SELECT b.posted, b.held FROM buckets b JOIN budgets x ON x.id = b.budget_id"
        " WHERE x.account_id = $1 ORDER BY b.window_key",
        key_id,
    )
    assert [(60, 0), (0, 100)] == [tuple(row) for row in rows]


async def test_a_total_never_resets(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100)
    assert told(await ledger.one(reserve(ledger.id(), key_id, 100, ttl_ms=86_400_000))) == "ok"

    refused = await ledger.one(reserve(ledger.id(), key_id, 1))

    assert isinstance(refused, BudgetRefused)
    assert refused.facts.resets_at is None
    assert "never resets" in refused.message


async def test_a_changed_time_zone_does_not_forget_what_was_spent(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100, "month", "UTC")
    assert told(await ledger.one(reserve(ledger.id(), key_id, 100))) == "ok"

    await ledger.budget("key", key_id, 100, "month", "Asia/Tokyo")

    assert told(await ledger.one(reserve(ledger.id(), key_id, 1))) == "BUDGET_EXCEEDED"


async def test_a_new_window_is_opened_once_by_many_at_the_same_moment(ledger: Ledger) -> None:
    key_id = await ledger.new_key(100, "month")

    outcomes = await asyncio.gather(
        *(ledger.one(reserve(ledger.id(), key_id, 30)) for _ in range(10))
    )

    assert sorted(told(o) for o in outcomes) == ["BUDGET_EXCEEDED"] * 7 + ["ok"] * 3
    rows = await ledger.fetch(
        "SELECT count(*) FROM buckets b JOIN budgets x ON x.id = b.budget_id"
        " WHERE x.account_id = $1",
        key_id,
    )
    assert rows[0][0] == 1
