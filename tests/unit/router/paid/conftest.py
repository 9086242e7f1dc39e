from collections.abc import AsyncIterator

import pytest

from penstock.router.backends.openai import OpenAIBackend
from support.clock import HandClock
from support.fake_upstream import (
    FakeUpstream,
)
from support.paid import IMPATIENT, make


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
def breaker_clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def backend(upstream: FakeUpstream, breaker_clock: HandClock) -> AsyncIterator[OpenAIBackend]:
    backend = make(upstream.base_url, breaker_clock)
    yield backend
    await backend.close()


@pytest.fixture
async def impatient(
    upstream: FakeUpstream, breaker_clock: HandClock
) -> AsyncIterator[OpenAIBackend]:
    backend = make(upstream.base_url, breaker_clock, IMPATIENT)
    yield backend
    await backend.close()
