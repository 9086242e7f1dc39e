"""Waiting for what no event tells of."""

import asyncio
from collections.abc import Callable

SECONDS_MAX = 5.0


async def until(condition: Callable[[], object]) -> None:
    """Returns once the condition holds; fails after five seconds."""
    async with asyncio.timeout(SECONDS_MAX):
        while not condition():  # noqa: ASYNC110 - looks at another part's state, which has no event
            await asyncio.sleep(0.002)
