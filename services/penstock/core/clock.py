"""Time, injected: tests move it, services read it."""

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic_seconds(self) -> float: ...

    def unix_seconds(self) -> float: ...


class SystemClock:
    def monotonic_seconds(self) -> float:
        return time.monotonic()

    def unix_seconds(self) -> float:
        return time.time()
