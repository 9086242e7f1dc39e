"""Identical requests share one generation: between routers, and between cache processes."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from penstock.cache.v1.cache_pb2 import AbandonRequest, LookupRequest, LookupResponse
from penstock.cache.wiring import Cache
from penstock.router.answers import CacheAnswers
from support.cache import (
    answer,
    cache_process,
    join,
    keep,
    key,
    look,
    router_side,
    running_cache,
    soon,
    text_of,
    waiting_in,
)
from support.tcp import free_port
from support.wait import until

HIT, MISS = LookupResponse.VERDICT_HIT, LookupResponse.VERDICT_MISS
LEAD, SHARED = LookupResponse.VERDICT_LEAD, LookupResponse.VERDICT_SHARED


@pytest.fixture
async def caches(database_dsn: str) -> AsyncIterator[tuple[Cache, Cache]]:
    """Two cache services over one database."""
    async with running_cache(database_dsn) as one, running_cache(database_dsn) as two:
        yield one, two


@pytest.fixture
async def routers(caches: tuple[Cache, Cache]) -> AsyncIterator[tuple[CacheAnswers, CacheAnswers]]:
    """Two routers, each with another cache service."""
    async with (
        router_side(caches[0].server.address) as one,
        router_side(caches[1].server.address) as two,
    ):
        yield one, two


async def lookup(router: CacheAnswers, request: LookupRequest) -> LookupResponse:
    found = await router.lookup(request, soon())
    assert found is not None
    return found


def waiting(router: CacheAnswers, request: LookupRequest) -> "asyncio.Task[LookupResponse]":
    return asyncio.create_task(lookup(router, request))


async def until_waits(count: int, *caches: Cache) -> None:
    await until(lambda: sum(map(waiting_in, caches)) == count)


async def flights(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("SELECT count(*) FROM flights")
    finally:
        await connection.close()


async def test_one_leads_and_the_others_share_its_answer_across_routers_and_processes(
    caches, routers
) -> None:
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint))
    assert lead.verdict == LEAD
    waiters = [waiting(routers[i % 2], join(fingerprint)) for i in range(10)]
    await until_waits(10, *caches)
    await routers[0].store(keep(fingerprint, answer=answer("once"), flight_token=lead.flight_token))
    for found in await asyncio.gather(*waiters):
        assert (found.verdict, text_of(found.answer)) == (SHARED, "once")
        assert found.HasField("stored_at")
    assert (await lookup(routers[1], join(fingerprint))).verdict == HIT


async def test_a_burst_of_identical_requests_has_exactly_one_leader(caches, routers) -> None:
    fingerprint = key()
    burst = [waiting(routers[i % 2], join(fingerprint)) for i in range(40)]
    (leader,), _ = await asyncio.wait(burst, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    await until_waits(39, *caches)
    await routers[1].store(keep(fingerprint, flight_token=leader.result().flight_token))
    verdicts = sorted([(await task).verdict for task in burst])
    assert verdicts == [SHARED] * 39 + [LEAD]


async def test_no_store_hands_the_answer_over_and_keeps_no_entry(caches, routers) -> None:
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint))
    waiters = [waiting(router, join(fingerprint)) for router in routers]
    await until_waits(2, *caches)
    await routers[0].store(keep(fingerprint, flight_token=lead.flight_token, no_store=True))
    assert [(await task).verdict for task in waiters] == [SHARED, SHARED]
    assert (await lookup(routers[1], look(fingerprint))).verdict == MISS
    again = await lookup(routers[1], join(fingerprint))
    assert again.verdict == LEAD


async def test_when_the_leader_abandons_the_next_one_leads(caches, routers) -> None:
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint))
    waiters = [waiting(routers[1], join(fingerprint)) for _ in range(3)]
    await until_waits(3, *caches)
    await routers[0].abandon(
        AbandonRequest(fingerprint=fingerprint, org_id="org_a", flight_token=lead.flight_token)
    )
    done, rest = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    assert [task.result().verdict for task in done] == [LEAD]
    await until_waits(2, *caches)
    await routers[1].store(keep(fingerprint, flight_token=done.pop().result().flight_token))
    assert [(await task).verdict for task in rest] == [SHARED, SHARED]


async def test_an_incomplete_answer_abandons_the_flight(caches, routers) -> None:
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint))
    waiter = waiting(routers[1], join(fingerprint))
    await until_waits(1, *caches)
    await routers[0].store(
        keep(fingerprint, answer=answer(finish=0), flight_token=lead.flight_token)
    )
    assert (await waiter).verdict == LEAD


async def test_when_the_leaders_stream_ends_the_next_one_leads_at_once(caches, routers) -> None:
    fingerprint = key()
    async with router_side(caches[0].server.address) as leader:
        assert (await lookup(leader, join(fingerprint))).verdict == LEAD
        waiter = waiting(routers[1], join(fingerprint))
        await until_waits(1, *caches)
    async with asyncio.timeout(1):
        assert (await waiter).verdict == LEAD


async def test_a_flight_outlives_its_lease_while_the_leaders_stream_lives(
    caches, routers, database_dsn
) -> None:
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint))
    waiter = waiting(routers[1], join(fingerprint))
    await until_waits(1, *caches)
    connection = await asyncpg.connect(database_dsn)
    soon_over = "UPDATE flights SET lease_expires_at = clock_timestamp() + interval '100 ms'"
    await connection.execute(soon_over)
    await caches[0].upkeep.renew()
    left = await connection.fetchval(
        "SELECT min(lease_expires_at) - clock_timestamp() FROM flights"
    )
    await connection.close()
    assert left.total_seconds() > 4
    await routers[0].store(keep(fingerprint, flight_token=lead.flight_token))
    assert (await waiter).verdict == SHARED


async def test_a_wait_ends_at_its_bound(caches, routers, database_dsn) -> None:
    fingerprint = key()
    assert (await lookup(routers[0], join(fingerprint))).verdict == LEAD
    expired = LookupResponse.VERDICT_WAIT_EXPIRED
    async with asyncio.timeout(2):
        found = await lookup(routers[1], join(fingerprint, wait_ms_max=100))
        assert found.verdict == expired
        found = await lookup(routers[1], join(fingerprint, wait_ms_max=0))
        assert found.verdict == expired
    assert sum(map(waiting_in, caches)) == 0
    assert await flights(database_dsn) == 1


async def test_a_wait_longer_than_the_looks_time_out_is_waited(caches, routers) -> None:
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint))
    async with router_side(caches[1].server.address, patience_seconds=0.5) as impatient:
        waiter = waiting(impatient, join(fingerprint))
        done, _ = await asyncio.wait({waiter}, timeout=1)
        assert not done
        await routers[0].store(keep(fingerprint, flight_token=lead.flight_token))
        assert (await waiter).verdict == SHARED


async def test_a_cancelled_wait_leaves_nothing_behind(caches, routers, database_dsn) -> None:
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint))
    waiter = waiting(routers[1], join(fingerprint))
    await until_waits(1, *caches)
    waiter.cancel()
    await until_waits(0, *caches)
    await routers[0].store(keep(fingerprint, flight_token=lead.flight_token))
    assert await flights(database_dsn) == 0


async def test_a_lookup_cancelled_at_any_moment_leaves_no_flight_behind(
    caches, routers, database_dsn
) -> None:
    for turns in range(60):
        task = waiting(routers[0], join(key()))
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        led = task.done()
        task.cancel()
        if led:
            # It led before it was cancelled: its caller has the token, and answers for it.
            break

    async def only_what_was_led() -> bool:
        return await flights(database_dsn) == int(led)

    await until(only_what_was_led)


async def test_a_waiting_lookup_does_not_hold_up_others_of_its_batch(caches, routers) -> None:
    awaited, free = key(), key()
    lead = await lookup(routers[0], join(awaited))
    both = [waiting(routers[1], join(awaited)), waiting(routers[1], look(free))]
    async with asyncio.timeout(2):
        assert (await both[1]).verdict == MISS
    assert not both[0].done()
    await routers[0].store(keep(awaited, flight_token=lead.flight_token))
    assert (await both[0]).verdict == SHARED


async def test_an_answer_stored_between_the_two_looks_of_a_joiner_is_found(
    routers, database_dsn
) -> None:
    """Else the joiner would lead, and the same answer would be paid for twice."""
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint))
    storing, watching = await asyncpg.connect(database_dsn), await asyncpg.connect(database_dsn)

    async def joiner_is_blocked() -> bool:
        return 1 == await watching.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

    async with storing.transaction():
        await storing.execute(
            "SELECT store_answers($1, $2, $3, $4, $5, $6, $7, $8)", "channel", ["org_a"],
            [fingerprint], [answer("just now").SerializeToString()], [True], [60],
            [lead.flight_token], 30.0,
        )  # fmt: skip
        joiner = waiting(routers[1], join(fingerprint))
        await until(joiner_is_blocked)
    found = await joiner
    await storing.close()
    await watching.close()
    assert (found.verdict, text_of(found.answer)) == (HIT, "just now")


async def test_flights_of_two_tenants_never_meet(caches, routers) -> None:
    fingerprint = key()
    one = await lookup(routers[0], join(fingerprint, "org_a"))
    two = await lookup(routers[1], join(fingerprint, "org_b"))
    assert (one.verdict, two.verdict) == (LEAD, LEAD)
    waiter = waiting(routers[1], join(fingerprint, "org_b"))
    await until_waits(1, *caches)
    await routers[0].store(
        keep(fingerprint, "org_a", answer=answer("a's"), flight_token=one.flight_token)
    )
    await routers[1].store(
        keep(fingerprint, "org_b", answer=answer("b's"), flight_token=two.flight_token)
    )
    assert text_of((await waiter).answer) == "b's"


async def test_a_token_of_another_tenant_ends_no_flight(caches, routers, database_dsn) -> None:
    fingerprint = key()
    lead = await lookup(routers[0], join(fingerprint, "org_a"))
    await routers[1].abandon(
        AbandonRequest(fingerprint=fingerprint, org_id="org_b", flight_token=lead.flight_token)
    )
    assert await flights(database_dsn) == 1


async def test_who_finds_every_entry_too_old_joins_a_flight(caches, routers) -> None:
    fingerprint = key()
    await routers[0].store(keep(fingerprint, answer=answer("stale")))
    request = join(fingerprint)
    request.max_age_seconds = 0
    lead = await lookup(routers[0], request)
    assert lead.verdict == LEAD
    waiter = waiting(routers[1], request)
    await until_waits(1, *caches)
    assert (await lookup(routers[1], join(fingerprint))).verdict == HIT
    await routers[0].store(
        keep(fingerprint, answer=answer("fresh"), flight_token=lead.flight_token)
    )
    assert text_of((await waiter).answer) == "fresh"


async def test_when_the_leaders_cache_process_is_killed_a_waiter_of_another_leads(
    database_dsn: str,
) -> None:
    fingerprint = key()
    async with (
        cache_process(database_dsn, free_port()) as doomed,
        running_cache(database_dsn) as other,
        router_side(doomed.address) as leader,
        router_side(other.server.address) as router,
    ):
        lead = await lookup(leader, join(fingerprint))
        assert lead.verdict == LEAD
        waiter = waiting(router, join(fingerprint, wait_ms_max=15_000))
        await until_waits(1, other)
        await doomed.kill()
        async with asyncio.timeout(8):  # the lease, and one poll
            taken = await waiter
        assert taken.verdict == LEAD
        assert taken.flight_token != lead.flight_token


async def test_a_drained_process_ends_its_streams_and_exits_cleanly(database_dsn: str) -> None:
    fingerprint = key()
    async with (
        cache_process(database_dsn, free_port()) as drained,
        running_cache(database_dsn) as other,
        router_side(drained.address) as leader,
        router_side(other.server.address) as router,
    ):
        assert (await lookup(leader, join(fingerprint))).verdict == LEAD
        waiter = waiting(router, join(fingerprint))
        await until_waits(1, other)
        async with asyncio.timeout(5):
            assert await drained.terminate() == 0
            assert (await waiter).verdict == LEAD
