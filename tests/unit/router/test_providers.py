"""Paid providers follow the catalogue without dropping a stream."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import pytest

from penstock.core.catalogue import Catalogue
from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.router.backends.base import AttemptFailed, Call, PoolView, ProviderView, Views
from penstock.router.backends.local import LocalBackend
from penstock.router.backends.providers import Providers, StandIn
from penstock.router.landscape import LiveLandscape
from penstock.router.pools import Pools
from support.chat import CATALOGUE_YAML, catalogue, chat
from support.fake_replica import FakeReplica, snapshot
from support.fake_upstream import FakeUpstream, failing, piece, sse, usage

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
            text: Catalogue = BEFORE,
            *,
            key: str | None = "k",
            environ: dict[str, str] | None = None,
            stand_in: StandIn | None = None,
        ) -> Providers:
            if environ is None:
                environ = {"ACME_BASE_URL": upstream.base_url}
                environ |= {"ACME_API_KEY": key} if key is not None else {}
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


OTHER = """
version: 1
providers:
  openai: {api_key_env: MY_OPENAI_KEY}
  groq: {base_url: https://api.groq.example/v1, api_key_env: GROQ_API_KEY}
"""
STAND_IN = StandIn("openai", "http://127.0.0.1:9/v1", "stand-in-key")


def accesses(providers: Providers) -> dict[str, tuple[str, str, str | None]]:
    found = {name: providers.backend(name).access for name in providers.views()}
    return {name: (a.label, a.base_url, a.api_key) for name, a in found.items()}


async def test_a_provider_is_sent_its_own_key_alone(make) -> None:
    providers = make(catalogue(OTHER), environ={"OPENAI_API_KEY": "a", "MY_OPENAI_KEY": "b"})
    assert accesses(providers) == {
        "openai": ("openai", "https://api.openai.com/v1", "b"),
        "groq": ("groq", "https://api.groq.example/v1", None),
    }


async def test_a_stand_in_plays_one_provider_by_a_name_of_its_own(make) -> None:
    providers = make(catalogue(OTHER), environ={"OPENAI_BASE_URL": "http://x"}, stand_in=STAND_IN)
    assert accesses(providers) == {
        "openai": ("openai-stand-in", "http://127.0.0.1:9/v1", "stand-in-key"),
        "groq": ("groq", "https://api.groq.example/v1", None),
    }
    assert "stand-in-key" not in repr(STAND_IN)


async def test_a_reload_of_the_breakers_settings_reaches_those_that_are_there(
    make, upstream
) -> None:
    providers = make()
    before = providers.backend("acme")
    upstream.answer = failing(500)
    quick = BEFORE.routing.model_copy(update={"breaker_failures": 1, "breaker_open_seconds": 60})
    providers.update(BEFORE.model_copy(update={"routing": quick}))
    assert providers.backend("acme") is before
    with pytest.raises(AttemptFailed):
        await text(providers)
    assert before.view.retry_after_seconds > 30


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
