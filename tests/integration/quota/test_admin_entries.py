"""Entries by every filter, page by page, by an index; usage that agrees with them."""

import json
from datetime import timedelta

import pytest

from penstock.quota.account import AccountKind
from penstock.quota.admin_service import AdminParts
from penstock.quota.store.entry_store import EntryFilter, entries_query
from penstock.quota.v1 import admin_pb2, quota_pb2
from support.admin import OPERATOR, fails, usd
from support.ledger import START, Ledger, reserve, settle, told


class House:
    """One organisation with two keys and a pool, and what they did."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def build(self) -> "House":
        ledger = self.ledger
        self.org, self.team, self.first = await ledger.new_path()
        self.second = await ledger.another_key(self.team)
        self.pool, (self.provider,) = await ledger.pool()
        await ledger.budget("org", self.org, 1000)
        self.a = await self._attempt(self.first, 10, request_id=f"r-{self.org}", end_user="ann")
        self.b = await self._attempt(
            self.second, 20, request_id=f"r-{self.org}", attempt=2, provider=self.provider
        )
        await ledger.advance(timedelta(minutes=1))
        self.c = await self._attempt(self.second, 30, tags={"app": "x", "env": "y"}, model="m")
        return self

    async def _attempt(self, key_id: int, used: int, **changes: object) -> str:
        id_ = self.ledger.id()
        assert "ok" == told(await self.ledger.one(reserve(id_, key_id, 50, **changes)))
        assert "ok" == told(await self.ledger.one(settle(id_, used, estimated=used == 20)))
        return id_


@pytest.fixture
async def house(ledger: Ledger) -> House:
    return await House(ledger).build()


async def found(admin: AdminParts, **fields: object) -> list[tuple[str, str, int]]:
    request = quota_pb2.ListEntriesRequest(**fields)
    entries = (await admin.entries.list(request)).entries
    return [(e.operation, e.reservation_id, e.posted_nano_usd) for e in entries]


async def test_each_filter_finds_what_it_says(house: House, admin: AdminParts) -> None:
    a = [("settle", house.a, 10), ("reserve", house.a, 0)]
    b = [("settle", house.b, 20), ("reserve", house.b, 0)]
    c = [("settle", house.c, 30), ("reserve", house.c, 0)]
    org_id = f"org_{house.org}"
    start = START + timedelta(seconds=30)

    assert a == await found(admin, reservation_id=house.a)
    assert b + a == await found(admin, request_id=f"r-{house.org}")
    assert a == await found(admin, request_id=f"r-{house.org}", key_id=f"key_{house.first}")
    assert a == await found(admin, key_id=f"key_{house.first}", user="ann")
    assert c[:1] == await found(admin, account_id=org_id, operation="settle", model="m")
    assert c == await found(admin, account_id=org_id, tags={"env": "y"})
    assert [] == await found(admin, account_id=org_id, tags={"env": "x"})
    assert c == await found(admin, account_id=f"team_{house.team}", since=start)
    assert a + c == (
        await found(admin, account_id=org_id, until=start, user="ann")
        + await found(admin, account_id=org_id, since=start)
    )
    assert b == await found(admin, account_id=f"key_{house.second}", provider=house.provider)
    assert b == [e for e in await found(admin, account_id=f"pool_{house.pool}") if e[1]]
    assert [] == await found(admin, account_id=f"key_{house.second}", reservation_id=house.a)
    assert a == await found(admin, account_id=org_id, reservation_id=house.a)
    assert [] == await found(admin, request_id="other", reservation_id=house.a)


async def test_changes_of_an_account_stand_among_its_entries(
    house: House, admin: AdminParts
) -> None:
    await admin.budgets.set(
        usd(account_id=f"org_{house.org}", name="b", limit_nano_usd=7), OPERATOR
    )
    listed = await admin.entries.list(
        quota_pb2.ListEntriesRequest(account_id=f"org_{house.org}", page_size=1)
    )

    (entry,) = listed.entries
    assert ("configure", f"org_{house.org}", "", "ops@example.org", "ticket 7") == (
        entry.operation,
        entry.account_id,
        entry.key_id,
        entry.actor,
        entry.reason,
    )
    assert 7 == json.loads(entry.detail_json)["after"]["limit"]
    settles = await admin.entries.list(quota_pb2.ListEntriesRequest(reservation_id=house.c))
    assert ({"app": "x", "env": "y"}, 7, 5, "ok") == (
        dict(settles.entries[0].tags),
        settles.entries[0].prompt_tokens,
        settles.entries[0].completion_tokens,
        settles.entries[0].outcome,
    )
    assert (0, "") == (settles.entries[1].prompt_tokens, settles.entries[1].outcome)


async def test_pages_join_without_a_gap(house: House, admin: AdminParts) -> None:
    request = quota_pb2.ListEntriesRequest(account_id=f"org_{house.org}")
    whole = [entry.id for entry in (await admin.entries.list(request)).entries]
    request.page_size = 2
    pages: list[int] = []
    while True:
        page = await admin.entries.list(request)
        pages += [entry.id for entry in page.entries]
        request.page_token = page.next_page_token
        if not request.page_token:
            break

    assert whole == pages
    assert sorted(whole, reverse=True) == whole
    assert len(whole) > 6


BAD = [
    ({"page_size": 1001}, "INVALID_ARGUMENT PAGE_SIZE_INVALID"),
    ({"page_size": -1}, "INVALID_ARGUMENT PAGE_SIZE_INVALID"),
    ({"page_token": "-1"}, "INVALID_ARGUMENT PAGE_TOKEN_INVALID"),
    ({"page_token": "x"}, "INVALID_ARGUMENT PAGE_TOKEN_INVALID"),
    ({"operation": "steal"}, "INVALID_ARGUMENT OPERATION_INVALID"),
    ({"reservation_id": "x"}, "INVALID_ARGUMENT RESERVATION_ID_INVALID"),
    ({"key_id": "org_1"}, "INVALID_ARGUMENT KEY_ID_INVALID"),
    ({"key_id": "key_99999999"}, "NOT_FOUND KEY_UNKNOWN"),
    ({"account_id": "pool_99999999"}, "NOT_FOUND POOL_UNKNOWN"),
    ({"account_id": "budget_1"}, "INVALID_ARGUMENT ACCOUNT_ID_INVALID"),
    ({"model": "m" * 513}, "INVALID_ARGUMENT MODEL_INVALID"),
    ({"tags": {f"t{n}": "" for n in range(33)}}, "INVALID_ARGUMENT TAGS_INVALID"),
    ({"since": START, "until": START}, "INVALID_ARGUMENT UNTIL_BEFORE_SINCE"),
]


@pytest.mark.parametrize(("fields", "reason"), BAD, ids=[next(iter(b[0])) for b in BAD])
async def test_a_faulty_question_is_refused(
    admin: AdminParts, fields: dict[str, object], reason: str
) -> None:
    request = quota_pb2.ListEntriesRequest(**fields)
    assert reason == await fails(admin.entries.list(request))


KINDS: list[AccountKind] = ["org", "team", "key"]


@pytest.mark.parametrize("kind", [*KINDS, "key_id", "reservation", "request"])
async def test_no_table_is_read_from_end_to_end(house: House, kind: str) -> None:
    numbers = {"org": house.org, "team": house.team, "key": house.first}
    match kind:
        case "key_id":
            wanted = EntryFilter(key_id=house.first, model="m")
        case "reservation":
            wanted = EntryFilter(reservation_id=house.a)
        case "request":
            wanted = EntryFilter(request_id=f"r-{house.org}")
        case _:
            account = next((k, numbers[k]) for k in KINDS if k == kind)
            wanted = EntryFilter(account=account, model="m", tags={"env": "y"})
    query, arguments = entries_query(wanted, before_id=10**9, rows_max=10)

    async with house.ledger.database.connection() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        plan = "\n".join(r[0] for r in await connection.fetch(f"EXPLAIN {query}", *arguments))

    assert "Seq Scan" not in plan, plan
    # The whole of `entries` in the order of its ids is no less than a sequential scan.
    assert "_id_idx" not in plan.replace("account_id_id_idx", "").replace("reservation_id_idx", "")


async def usage(admin: AdminParts, account_id: str, **fields: object) -> list[tuple[object, ...]]:
    request = admin_pb2.GetUsageRequest(account_id=account_id, **fields)
    rows = (await admin.reports.usage(request)).rows
    return sorted(
        (r.key_id, r.provider, r.model, r.attempts, r.posted_nano_usd, r.estimated_nano_usd)
        for r in rows
    )


async def test_usage_agrees_with_the_entries(house: House, admin: AdminParts) -> None:
    org_id, first, second = f"org_{house.org}", f"key_{house.first}", f"key_{house.second}"
    for n, target in enumerate(
        [{"account_id": org_id}, {"reservation_id": house.a}, {"reservation_id": house.a}]
    ):
        await admin.adjustments.adjust(
            admin_pb2.AdjustRequest(
                amount_nano_usd=4, adjustment_key=f"u-{house.org}-{n}", **target
            ),
            OPERATOR,
        )
    a = (first, "openai", "gpt-4o-mini", 1, 18, 0)
    b = (second, house.provider, "gpt-4o-mini", 1, 20, 20)
    c = (second, "openai", "m", 1, 30, 0)
    whole = ("", "", "", 0, 4, 0)

    assert sorted([whole, a, b, c]) == await usage(admin, org_id)
    assert sorted([a, b, c]) == await usage(admin, f"team_{house.team}")
    assert [a] == await usage(admin, first)
    assert [b] == await usage(admin, f"pool_{house.pool}")
    assert [c] == await usage(admin, second, since=START + timedelta(seconds=30))
    total = sum(row[4] for row in await usage(admin, org_id))
    entries = await admin.entries.list(quota_pb2.ListEntriesRequest(account_id=org_id))
    assert total == sum(entry.posted_nano_usd for entry in entries.entries)
    every = await admin.reports.usage(admin_pb2.GetUsageRequest())
    assert {first, second} <= {row.key_id for row in every.rows}


async def test_usage_tells_what_is_held(house: House, admin: AdminParts) -> None:
    id_ = house.ledger.id()
    await house.ledger.one(reserve(id_, house.first, 40, model="held"))
    request = admin_pb2.GetUsageRequest(account_id=f"key_{house.first}")
    (row,) = [r for r in (await admin.reports.usage(request)).rows if r.model == "held"]
    assert (1, 0, 40) == (row.attempts, row.posted_nano_usd, row.held_nano_usd)
    backwards = admin_pb2.GetUsageRequest(since=START, until=START - timedelta(days=1))
    assert "INVALID_ARGUMENT UNTIL_BEFORE_SINCE" == await fails(admin.reports.usage(backwards))
    unknown = admin_pb2.GetUsageRequest(account_id="team_99999999")
    assert "NOT_FOUND TEAM_UNKNOWN" == await fails(admin.reports.usage(unknown))
