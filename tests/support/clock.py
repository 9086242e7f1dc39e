"""A clock that stands still until a test moves it."""


class HandClock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def monotonic_seconds(self) -> float:
        return self.now

    def unix_seconds(self) -> float:
        return self.now
