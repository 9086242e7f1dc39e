"""Entries of the real service over a real PostgreSQL, seen from a router."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from penstock.cache.config import Config
from penstock.cache.v1.cache_pb2 import (
    BatchRequest,
    LookupResponse,
    Operation,
    OperationResult,
    StoreRequest,
)
from penstock.cache.v1.cache_pb2_grpc import CacheServiceStub
from penstock.cache.wiring import Cache
from penstock.core.catalogue import CacheSettings
from penstock.core.channel import bearer, connect
from penstock.core.telemetry import Telemetry
from penstock.router.answers import CacheAnswers
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_BUDGET,
    FINISH_REASON_CONTENT_FILTER,
    FINISH_REASON_UNSPECIFIED,
)
from support.cache import TOKEN, answer, keep, key, look, router_side, running_cache, soon, text_of
from support.wait import until


@pytest.fixture
async def cache(database_dsn: str) -> AsyncIterator[Cache]:
    async with running_cache(database_dsn, entry_bytes_max=4096) as running:
        yield running


@pytest.fixture
async def answers(cache: Cache) -> AsyncIterator[CacheAnswers]:
    async with router_side(cache.server.address) as side:
        yield side


@pytest.fixture
async def stub(cache: Cache) -> AsyncIterator[CacheServiceStub]:
    async with connect(cache.server.address) as channel:
        yield CacheServiceStub(channel)


METADATA = (bearer(TOKEN),)


async def result(stub: CacheServiceStub, metadata=METADATA, **operation) -> OperationResult:
    """Of an operation alone on a stream."""
    stream = stub.Batch(metadata=metadata)
    await stream.write(BatchRequest(operations=[Operation(operation_id=1, **operation)]))
    (found,) = (await stream.read()).results
    stream.cancel()
    return found


async def verdict(answers: CacheAnswers, request) -> int:
    found = await answers.lookup(request, soon())
    assert found is not None
    return found.verdict


async def test_a_stored_answer_is_found_with_its_time_and_its_cost(answers: CacheAnswers) -> None:
    fingerprint = key()
    assert await verdict(answers, look(fingerprint)) == LookupResponse.VERDICT_MISS
    await answers.store(keep(fingerprint))
    found = await answers.lookup(look(fingerprint), soon())
    assert found is not None
    assert found.verdict == LookupResponse.VERDICT_HIT
    assert found.answer == answer()
    assert found.HasField("stored_at")


async def test_an_answer_of_another_tenant_is_not_found(answers: CacheAnswers) -> None:
    fingerprint = key()
    await answers.store(keep(fingerprint, "org_a"))
    assert await verdict(answers, look(fingerprint, "org_b")) == LookupResponse.VERDICT_MISS
    assert await verdict(answers, look(fingerprint, "org_a")) == LookupResponse.VERDICT_HIT


async def test_a_newer_answer_replaces_the_older(answers: CacheAnswers) -> None:
    fingerprint = key()
    await answers.store(keep(fingerprint, answer=answer("old")))
    await answers.store(keep(fingerprint, answer=answer("new")))
    found = await answers.lookup(look(fingerprint), soon())
    assert found is not None
    assert text_of(found.answer) == "new"


async def test_an_expired_entry_is_not_found_though_nothing_swept_it(
    answers: CacheAnswers, database_dsn: str
) -> None:
    fingerprint = key()
    await answers.store(keep(fingerprint, ttl_seconds=3600))
    await _age(database_dsn, 3599)
    assert await verdict(answers, look(fingerprint)) == LookupResponse.VERDICT_HIT
    await _age(database_dsn, 2)
    assert await verdict(answers, look(fingerprint)) == LookupResponse.VERDICT_MISS


async def test_max_age_refuses_older_entries_only(answers: CacheAnswers, database_dsn: str) -> None:
    fingerprint = key()
    await answers.store(keep(fingerprint))
    await _age(database_dsn, 60)
    miss, hit = LookupResponse.VERDICT_MISS, LookupResponse.VERDICT_HIT
    assert await verdict(answers, look(fingerprint, max_age_seconds=59)) == miss
    assert await verdict(answers, look(fingerprint, max_age_seconds=0)) == miss
    assert await verdict(answers, look(fingerprint, max_age_seconds=120)) == hit
    assert await verdict(answers, look(fingerprint, max_age_seconds=2**62)) == hit


async def test_no_store_keeps_no_entry_and_says_so(
    stub: CacheServiceStub, answers: CacheAnswers
) -> None:
    fingerprint = key()
    told = await result(stub, store=keep(fingerprint, no_store=True))
    assert (told.store.stored, told.store.reason) == (False, "NO_STORE")
    assert await verdict(answers, look(fingerprint)) == LookupResponse.VERDICT_MISS


async def test_an_answer_over_the_entry_limit_is_not_kept(
    stub: CacheServiceStub, answers: CacheAnswers
) -> None:
    fits, too_large = key(), key()
    told = await result(stub, store=keep(fits, answer=answer("x" * 3900)))
    assert (told.store.stored, told.store.reason) == (True, "")
    told = await result(stub, store=keep(too_large, answer=answer("x" * 4097)))
    assert (told.store.stored, told.store.reason) == (False, "TOO_LARGE")
    assert await verdict(answers, look(fits)) == LookupResponse.VERDICT_HIT
    assert await verdict(answers, look(too_large)) == LookupResponse.VERDICT_MISS


async def test_the_router_keeps_to_the_catalogues_entry_limit(cache: Cache) -> None:
    settings = CacheSettings(entry_bytes_max=1024)
    async with router_side(cache.server.address, settings) as answers:
        fingerprint = key()
        await answers.store(keep(fingerprint, answer=answer("x" * 1100)))
        assert await verdict(answers, look(fingerprint)) == LookupResponse.VERDICT_MISS


def _estimated() -> StoreRequest:
    request = keep(key())
    request.answer.usage.estimated = True
    return request


def _without_choices() -> StoreRequest:
    request = keep(key())
    del request.answer.choices[:]
    return request


@pytest.mark.parametrize(
    "request_",
    [
        keep(key(), answer=answer(finish=FINISH_REASON_UNSPECIFIED)),
        keep(key(), answer=answer(finish=FINISH_REASON_BUDGET)),
        keep(key(), answer=answer(finish=FINISH_REASON_CONTENT_FILTER)),
        _estimated(),
        _without_choices(),
        keep(b"short"),
        keep(key(), org_id=""),
        keep(key(), org_id="a\0b"),
        keep(key(), ttl_seconds=0),
        keep(key(), ttl_seconds=31_536_001),
        keep(key(), flight_token="no token"),
    ],
)
async def test_a_store_that_is_faulty_or_incomplete_is_refused(
    stub: CacheServiceStub, request_: StoreRequest, database_dsn: str
) -> None:
    told = await result(stub, store=request_)
    assert told.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert await _count(database_dsn, "entries") == 0


@pytest.mark.parametrize(
    "request_",
    [
        look(b""),
        look(key(), org_id=""),
        look(key(), wait_ms_max=600_001),
        look(key(), wait_ms_max=-1),
        look(key(), max_age_seconds=-1),
    ],
)
async def test_a_faulty_lookup_is_refused_and_the_router_sees_none(
    stub: CacheServiceStub, answers: CacheAnswers, request_
) -> None:
    told = await result(stub, lookup=request_)
    assert told.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert await answers.lookup(request_, soon()) is None
    assert answers.unavailable_count == 1


@pytest.mark.parametrize("metadata", [(), (bearer("another"),)])
async def test_callers_without_the_token_are_refused(stub: CacheServiceStub, metadata) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await result(stub, metadata, lookup=look(key()))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
async def small(database_dsn: str) -> AsyncIterator[tuple[Cache, CacheAnswers]]:
    """A cache that holds 1 MiB."""
    limits = {"bytes_max": 1024**2, "entry_bytes_max": 1024**2}
    async with (
        running_cache(database_dsn, **limits) as cache,
        router_side(cache.server.address) as answers,
    ):
        yield cache, answers


async def test_the_least_recently_used_go_when_the_cache_is_full(small, database_dsn) -> None:
    cache, answers = small
    keys = [key() for _ in range(10)]
    for fingerprint in keys[:5]:
        await answers.store(keep(fingerprint, answer=answer("x" * 120_000)))
    await cache.upkeep.sweep()
    assert await verdict(answers, look(keys[0])) == LookupResponse.VERDICT_HIT
    await cache.upkeep.sweep()
    for fingerprint in keys[5:]:
        await answers.store(keep(fingerprint, answer=answer("x" * 120_000)))
    await until(lambda: _fits(database_dsn, 1024**2))
    kept = [
        await verdict(answers, look(fingerprint)) == LookupResponse.VERDICT_HIT
        for fingerprint in keys
    ]
    # 1.2 MB came, 1 MiB may stay: the second and third were used least recently.
    assert [kept[0], kept[1], kept[2], all(kept[5:])] == [True, False, False, True]


async def test_a_full_cache_sweeps_by_itself_before_its_time(small, database_dsn) -> None:
    _, answers = small
    for _ in range(20):
        await answers.store(keep(key(), answer=answer("x" * 120_000)))
    await until(lambda: _fits(database_dsn, 1024**2))


async def test_the_sweep_removes_what_expired(
    cache: Cache, answers: CacheAnswers, database_dsn: str
) -> None:
    await answers.store(keep(key(), ttl_seconds=10))
    stays = key()
    await answers.store(keep(stays, ttl_seconds=3600))
    await _age(database_dsn, 60)
    await cache.upkeep.sweep()
    assert await _count(database_dsn, "entries") == 1
    assert await verdict(answers, look(stays)) == LookupResponse.VERDICT_HIT


async def test_many_lookups_at_once_take_few_statements(
    cache: Cache, answers: CacheAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key() for _ in range(200)]
    for fingerprint in keys[::2]:
        await answers.store(keep(fingerprint))
    batches: list[int] = []
    look_up = cache.service._lookups._asks._apply

    async def counted(asks):
        batches.append(len(asks))
        return await look_up(asks)

    monkeypatch.setattr(cache.service._lookups._asks, "_apply", counted)
    verdicts = await asyncio.gather(*(verdict(answers, look(k)) for k in keys))
    assert verdicts == [LookupResponse.VERDICT_HIT, LookupResponse.VERDICT_MISS] * 100
    assert sum(batches) == 200
    assert len(batches) <= 10


async def test_an_operation_of_a_traced_request_is_a_span_of_its_trace(database_dsn: str) -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry("cache", exporter)
    trace_id, parent_id = "ab" * 16, "cd" * 8
    async with (
        running_cache(database_dsn, telemetry) as cache,
        router_side(cache.server.address) as answers,
    ):
        traced, untraced = f"00-{trace_id}-{parent_id}-01", f"00-{trace_id}-{parent_id}-00"
        await answers.lookup(look(key()), soon(), traced)
        await answers.lookup(look(key()), soon(), untraced)
        await answers.store(keep(key()), traced)
    assert telemetry.flush()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["cache lookup", "cache store"]
    assert spans[0].attributes == {"penstock.cache": "miss"}
    for span in spans:
        assert f"{span.context.trace_id:032x}" == trace_id
        assert f"{span.parent.span_id:016x}" == parent_id


async def test_the_settings_faults_are_told_all_at_once_and_no_secret_is_shown() -> None:
    from penstock.core.config import ConfigError

    with pytest.raises(ConfigError) as faults:
        Config.read({"PENSTOCK_CACHE_LISTEN": "nowhere", "PENSTOCK_CACHE_BYTES_MAX": "0"})
    named = {line.split(":")[0] for line in str(faults.value).splitlines()}
    assert named == {
        "PENSTOCK_CACHE_DSN",
        "PENSTOCK_SERVICE_TOKEN",
        "PENSTOCK_CACHE_LISTEN",
        "PENSTOCK_CACHE_BYTES_MAX",
    }
    config = Config.read(
        {"PENSTOCK_CACHE_DSN": "postgresql://u:pw@h/d", "PENSTOCK_SERVICE_TOKEN": "tk-secret"}
    )
    assert "pw" not in f"{config} {config!r}"
    assert "tk-secret" not in f"{config} {config!r}"


async def _age(dsn: str, seconds: int) -> None:
    """As if the entries had been stored earlier."""
    await _execute(
        dsn,
        f"UPDATE entries SET stored_at = stored_at - interval '{seconds} s',"
        f" expires_at = expires_at - interval '{seconds} s'",
    )


async def _execute(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def _count(dsn: str, table: str) -> object:
    return await _execute(dsn, f"SELECT count(*) FROM {table}")


async def _fits(dsn: str, bytes_max: int) -> bool:
    return await _size(dsn) <= bytes_max


async def _size(dsn: str) -> int:
    size = await _execute(dsn, "SELECT coalesce(sum(size_bytes), 0)::bigint FROM entries")
    assert isinstance(size, int)
    return size
