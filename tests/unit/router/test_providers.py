"""Paid providers follow the catalogue without dropping a stream."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest

from penstock.core.catalogue import Catalogue
from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.router.backends.base import AttemptFailed, Call, PoolView, ProviderView, Views
from penstock.router.backends.local import LocalBackend
from penstock.router.backends.providers import Providers
from penstock.router.landscape import LiveLandscape
from penstock.router.pools import Pools
from support.chat import CATALOGUE_YAML, catalogue, chat
from support.fake_replica import FakeReplica, snapshot
from support.fake_upstream import FakeUpstream, piece, sse, usage

BEFORE = catalogue()
WITHOUT_PROVIDERS = BEFORE.model_copy(update={"providers": {}})
WITH_ONE_MORE_MODEL = catalogue(CATALOGUE_YAML.replace("thinker:", "another:"))


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
async def make(upstream: FakeUpstream) -> AsyncIterator[object]:
    async with AsyncExitStack() as stack:

        def build(
            text: Catalogue = BEFORE, *, key: str | None = "k", stand_in: str | None = None
        ) -> Providers:
            environ = {"OPENAI_BASE_URL": upstream.base_url} | (
                {"OPENAI_API_KEY": key} if key is not None else {}
            )
            made = Providers(text, environ=environ, clock=SystemClock(), stand_in=stand_in)
            stack.push_async_callback(made.close)
            return made

        yield build


def call(model: str = "large") -> Call:
    return Call("req_1", model, chat(max_tokens=8), Deadline.after(20))


async def text(providers: Providers, model: str = "large") -> str:
    chunks = [c async for c in providers.backend("acme").generate(call(model))]
    return "".join(d.content for c in chunks for d in c.deltas)


async def test_a_provider_with_a_key_is_on_and_answers(make, upstream) -> None:
    providers = make()
    assert providers.views() == {"acme": ProviderView("acme", enabled=True)}
    assert await text(providers) == "hello"


@pytest.mark.parametrize("key", [None, ""])
async def test_a_provider_without_a_key_is_off(make, upstream, key) -> None:
    providers = make(key=key)
    assert providers.views() == {"acme": ProviderView("acme", enabled=False)}
    with pytest.raises(AttemptFailed) as caught:
        await text(providers)
    assert caught.value.error.reason == "PROVIDER_OFF"
    assert upstream.bodies == []


async def test_a_stand_in_is_called_by_its_name(make) -> None:
    assert make(stand_in="acme").views()["acme"].label == "acme-stand-in"


async def test_keys_are_never_printed(make) -> None:
    assert "very-secret" not in repr(make(key="very-secret").backend("acme").access)


async def test_a_new_model_needs_no_new_connection_and_drops_no_stream(make, upstream) -> None:
    providers = make()
    before = providers.backend("acme")
    upstream.answer = sse(piece("a"), piece("b"), piece(finish="stop"), usage())
    async with aclosing(before.generate(call())) as chunks:
        await anext(chunks)
        providers.update(WITH_ONE_MORE_MODEL)
        assert providers.backend("acme") is before
        assert await text(providers, "another") == "ab"
        rest = [d.content async for c in chunks for d in c.deltas]
    assert rest == ["b", ""]


async def test_a_provider_that_is_removed_ends_its_streams_and_takes_no_more(
    make, upstream
) -> None:
    providers = make()
    before = providers.backend("acme")
    upstream.answer = sse(piece("a"), piece("b"), piece(finish="stop"), usage())
    async with aclosing(before.generate(call())) as chunks:
        await anext(chunks)
        providers.update(WITHOUT_PROVIDERS)
        assert providers.views() == {}
        with pytest.raises(AttemptFailed) as caught:
            providers.backend("acme")
        assert caught.value.fall_back
        assert [d.content async for c in chunks for d in c.deltas] == ["b", ""]
    providers.update(BEFORE)
    assert await text(providers) == "ab"


async def test_a_changed_time_out_makes_a_new_backend(make) -> None:
    providers = make()
    before = providers.backend("acme")
    spec = BEFORE.providers["acme"].model_copy(update={"idle_timeout_seconds": 9.0})
    providers.update(BEFORE.model_copy(update={"providers": {"acme": spec}}))
    assert providers.backend("acme") is not before
    assert await text(providers) == "hello"


async def test_the_landscape_shows_and_reaches_both_sides(make) -> None:
    providers, clock = make(), SystemClock()
    pools = Pools(catalogue=lambda: BEFORE, clock=clock)
    local = LocalBackend(pools=pools, token="t", clock=clock)
    landscape = LiveLandscape(pools=pools, local=local, providers=providers)
    async with FakeReplica() as replica:
        pools.apply(snapshot(replica.listed()))
        assert landscape.views() == Views(
            pools={"small": PoolView(ready_replicas=1, free_slots=2, queue_room=4)},
            providers={"acme": ProviderView("acme", enabled=True)},
        )
    assert landscape.backend("local") is local
    assert landscape.backend("acme") is providers.backend("acme")
    await pools.close()
