"""A token bucket: how many requests a second are traced in detail."""

import time
from collections.abc import Callable


class TokenBucket:
    """`rate_per_second` tokens a second, at most `burst` saved up. A rate of 0 never gives one."""

    def __init__(
        self,
        rate_per_second: float,
        burst: float,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        assert rate_per_second >= 0
        assert burst >= 0
        self._rate = rate_per_second
        self._burst = burst
        self._now = monotonic_seconds
        self._tokens = burst if rate_per_second > 0 else 0.0
        self._at = monotonic_seconds()

    def take(self) -> bool:
        """Whether a token was there; it is gone then."""
        now = self._now()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
