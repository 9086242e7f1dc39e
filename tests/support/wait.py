"""Waits for what no event tells."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.005


async def until(
    condition: Callable[[], bool | Awaitable[bool]], timeout_seconds: float = 10.0
) -> None:
    """Returns once the condition holds; TimeoutError where it does not in time."""
    async with asyncio.timeout(timeout_seconds):
        while True:
            held = condition()
            if inspect.isawaitable(held):
                held = await held
            if held:
                return
            await asyncio.sleep(POLL_SECONDS)
