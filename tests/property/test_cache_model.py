"""The cache against a model in plain Python: what is found is what its own tenant stored last."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from penstock.cache.v1.cache_pb2 import AbandonRequest, LookupResponse
from penstock.core.postgres_server import PrivateServer
from penstock.router.answers import CacheAnswers
from support.cache import answer, join, keep, look, router_side, running_cache, soon, text_of
from support.postgres import fresh_database, postgres_server
from support.wait import until

__all__ = ["postgres_server"]

ORGS = ["org_a", "org_b", "org_a\x01", "ORG_A"]
FINGERPRINTS = [bytes([n]) * 32 for n in (0, 1)]

Key = tuple[str, bytes]
HIT, MISS = LookupResponse.VERDICT_HIT, LookupResponse.VERDICT_MISS
LEAD, LEFT = LookupResponse.VERDICT_LEAD, LookupResponse.VERDICT_WAIT_EXPIRED

keys = st.tuples(st.sampled_from(ORGS), st.sampled_from(FINGERPRINTS))
steps = st.tuples(
    st.sampled_from(["look", "join", "store", "store_no_store", "abandon"]),
    keys,
    st.integers(0, 1),
)


@dataclass
class Model:
    entries: dict[Key, str] = field(default_factory=dict)
    flights: dict[Key, str] = field(default_factory=dict)

    def expected(self, kind: str, key: Key) -> tuple[int, str]:
        if key in self.entries:
            return HIT, self.entries[key]
        if kind == "look":
            return MISS, ""
        return (LEFT if key in self.flights else LEAD), ""


@pytest.fixture(scope="module")
def database(postgres_server: PrivateServer) -> str:
    return asyncio.run(fresh_database(postgres_server))


async def empty(dsn: str) -> None:
    async with running_cache(dsn) as cache:
        await cache.pool.execute("DELETE FROM entries; DELETE FROM flights; DELETE FROM handoffs")


async def play(dsn: str, script: list[tuple[str, Key, int]]) -> None:
    model = Model()
    await empty(dsn)
    async with (
        running_cache(dsn) as one,
        running_cache(dsn) as two,
        router_side(one.server.address) as first,
        router_side(two.server.address) as second,
    ):
        for number, (kind, key, via) in enumerate(script):
            await step(model, (first, second)[via], kind, key, number)


async def step(model: Model, router: CacheAnswers, kind: str, key: Key, number: int) -> None:
    org_id, fingerprint = key
    if kind.startswith("store"):
        # The text says whose it is: were it found by another tenant, it would show.
        text, no_store = f"{org_id!r} {fingerprint[:1]!r} {number}", kind == "store_no_store"
        token = model.flights.pop(key, "")
        request = keep(fingerprint, org_id, answer=answer(text), flight_token=token)
        request.no_store = no_store
        await router.store(request)
        if not no_store:
            model.entries[key] = text
        return
    if kind == "abandon":
        token = model.flights.pop(key, "")
        if token:
            await router.abandon(
                AbandonRequest(fingerprint=fingerprint, org_id=org_id, flight_token=token)
            )
        return
    ask = look(fingerprint, org_id) if kind == "look" else join(fingerprint, org_id, wait_ms_max=0)
    found = await router.lookup(ask, soon())
    assert found is not None
    text = text_of(found.answer) if found.HasField("answer") else ""
    assert model.expected(kind, key) == (found.verdict, text)
    if found.verdict == LEAD:
        model.flights[key] = found.flight_token


# Shrinking would take minutes with two services an example, and a script reads well as it is.
WITHOUT_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=WITHOUT_SHRINKING,
)
@given(script=st.lists(steps, min_size=10, max_size=60))
def test_no_answer_crosses_tenants_and_the_last_one_stored_is_found(
    database: str, script: list[tuple[str, Key, int]]
) -> None:
    asyncio.run(play(database, script))


@pytest.mark.parametrize("waiters", [25])
async def test_waiters_of_many_tenants_each_get_their_own_answer(
    database: str, waiters: int
) -> None:
    fingerprint = FINGERPRINTS[0]
    await empty(database)
    async with running_cache(database) as cache, router_side(cache.server.address) as router:
        orgs = [f"org_{n}" for n in range(waiters)]
        leads = [await router.lookup(join(fingerprint, org), soon()) for org in orgs]
        waits = [asyncio.create_task(router.lookup(join(fingerprint, org), soon())) for org in orgs]
        await until(lambda: len(cache.upkeep._waits.flights) == waiters)
        for org, lead in zip(orgs, leads, strict=True):
            assert lead is not None
            await router.store(
                keep(fingerprint, org, answer=answer(org), flight_token=lead.flight_token)
            )
        found = await asyncio.gather(*waits)
        assert [text_of(f.answer) for f in found if f] == orgs
