"""A request's deadline: set once at the edge, handed down, never prolonged."""

from dataclasses import dataclass

from penstock.core.clock import Clock, SystemClock
from penstock.core.errors import DeadlineExceeded

_SYSTEM = SystemClock()


def late() -> DeadlineExceeded:
    """What a client is told whose time was over before its answer was complete."""
    return DeadlineExceeded(
        "the deadline passed before the answer was complete; "
        "allow more time or ask for fewer tokens"
    )


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock of this process."""

    at_monotonic_seconds: float
    clock: Clock = _SYSTEM

    @classmethod
    def after(cls, seconds: float, clock: Clock = _SYSTEM) -> "Deadline":
        return cls(clock.monotonic_seconds() + seconds, clock)

    def remaining_seconds(self) -> float:
        """What is left; never below zero."""
        return max(0.0, self.at_monotonic_seconds - self.clock.monotonic_seconds())

    def check(self) -> None:
        """Raises DeadlineExceeded where nothing is left."""
        if self.remaining_seconds() <= 0:
            raise DeadlineExceeded(
                "the deadline has passed; allow more time or ask for fewer tokens"
            )
