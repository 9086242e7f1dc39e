"""When a failed call is made again: where nothing was delivered or charged, and the router or what
it asked was not there.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from penstock.core.errors import DeadlineExceeded, PenstockError
from penstock.core.status import from_rpc_error

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retry:
    """Growing pauses with jitter; what the router says by RetryInfo is obeyed.

    Attributes:
        attempts_max: Calls in all; 1: no repeats.
        pause_seconds: Before the second call.
        pause_seconds_max: The pauses double up to this.
        jitter: 0 to 1, so that many clients do not come back in step.
        sleep: Waits.
    """

    attempts_max: int = 3
    pause_seconds: float = 0.1
    pause_seconds_max: float = 2.0
    jitter: Callable[[], float] = random.random
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def pause_after(self, attempt: int, error: PenstockError, left_seconds: float) -> float | None:
        """Seconds until the next call after the failed `attempt` (from 1); None: no more."""
        is_away = error.code is grpc.StatusCode.UNAVAILABLE and error.cost_nano_usd == 0
        if not is_away or attempt >= self.attempts_max:
            return None
        longest = min(self.pause_seconds * 2 ** (attempt - 1), self.pause_seconds_max)
        pause = longest * (0.5 + self.jitter() / 2)
        pause = max(pause, error.retry_after_seconds or 0.0)
        return pause if pause < left_seconds else None


class CallTime:
    """What one call may take, over all its attempts."""

    def __init__(self, timeout_seconds: float | None) -> None:
        self._until = None if timeout_seconds is None else time.monotonic() + timeout_seconds

    def left_seconds(self) -> float | None:
        """What is left; None: there is no limit.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        if self._until is None:
            return None
        left = self._until - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline has passed; allow more time")
        return left


async def repeated(
    call: Callable[[float | None], Awaitable[T]], retry: Retry, timeout_seconds: float | None
) -> T:
    """Calls until it succeeds or fails for good; `call` gets the seconds that are left.

    Raises:
        PenstockError: the last failure.
    """
    time_of_call = CallTime(timeout_seconds)
    attempt = 0
    while True:
        attempt += 1
        left = time_of_call.left_seconds()
        try:
            return await call(left)
        except grpc.aio.AioRpcError as failed:
            error = from_rpc_error(failed)
        pause = retry.pause_after(attempt, error, float("inf") if left is None else left)
        if pause is None:
            raise error
        await retry.sleep(pause)
