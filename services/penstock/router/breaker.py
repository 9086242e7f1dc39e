"""A circuit breaker: failures in a row open it, after a pause one probe decides.

    closed    ── `failures` in a row, or told to pause ──►  open
    open      ── the pause is over ──►                      half-open: one probe
    half-open ── the probe succeeds ──►                     closed
    half-open ── the probe fails ──►                        open

Pure; time is injected.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.core.catalogue import RoutingSettings
from penstock.core.clock import Clock

PROBE_WAIT_SECONDS = 1.0
"""Told to those who come while the one probe is out: its first answer usually takes less."""

PAUSE_SECONDS_MAX = 3600.0
"""A peer that asks for more is probed once an hour all the same: it may have been mended."""


@dataclass(frozen=True, slots=True)
class Trip:
    """When a breaker opens, and for how long."""

    failures: int
    """In a row."""
    open_seconds: float


def trip_of(routing: RoutingSettings) -> Trip:
    return Trip(routing.breaker_failures, routing.breaker_open_seconds)


class Breaker:
    """Of one replica or one provider. Not thread-safe: it belongs to one event loop.

    Args:
        trip: Asked whenever it matters, so that a reload of the catalogue reaches every breaker.
    """

    def __init__(self, trip: Callable[[], Trip], clock: Clock) -> None:
        self._trip = trip
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probe: Permit | None = None

    @property
    def is_closed(self) -> bool:
        return self._open_until is None

    @property
    def admits(self) -> bool:
        """Whether `enter` would give a permit now."""
        return self._open_until is None or (
            self._probe is None and self._clock.monotonic_seconds() >= self._open_until
        )

    @property
    def retry_after_seconds(self) -> float | None:
        """How long it still refuses; None: it does not."""
        if self._open_until is None or self.admits:
            return None
        left = self._open_until - self._clock.monotonic_seconds()
        return left if left > 0 else PROBE_WAIT_SECONDS

    def enter(self) -> "Permit | None":
        """A permit for one call; None while open. Whoever gets one must end it."""
        if not self.admits:
            return None
        permit = Permit(self)
        if self._open_until is not None:
            self._probe = permit
        return permit

    def eject(self) -> None:
        """Opens at once: the peer said itself that it is dead."""
        self.pause(self._trip().open_seconds)

    def pause(self, seconds: float) -> None:
        """Opens at once: the peer asked for it."""
        seconds = min(max(0.0, seconds), PAUSE_SECONDS_MAX)
        until = self._clock.monotonic_seconds() + seconds
        self._open_until = max(until, self._open_until or until)
        self._probe = None

    def heard(self) -> None:
        """Closes at once: the peer was heard by another way than a permit's."""
        self._close(failures=0)

    def _progressed(self, permit: "Permit") -> None:
        if permit is self._probe:
            # It answers again, but did not end well yet: one more failure opens again.
            self._close(failures=self._trip().failures - 1)

    def _succeeded(self, permit: "Permit") -> None:
        # A call that began before it opened proves nothing about now.
        if self._open_until is None or permit is self._probe:
            self._close(failures=0)

    def _failed(self, permit: "Permit") -> None:
        if permit is self._probe:
            self._probe = None
            self._open()
        elif self._open_until is None:
            self._failures += 1
            if self._failures >= self._trip().failures:
                self._open()

    def _dropped(self, permit: "Permit") -> None:
        if permit is self._probe:
            self._probe = None

    def _open(self) -> None:
        self._open_until = self._clock.monotonic_seconds() + self._trip().open_seconds

    def _close(self, *, failures: int) -> None:
        self._failures = failures
        self._open_until = None
        self._probe = None


@dataclass(eq=False, slots=True)
class Permit:
    """One call's leave to go, and its verdict: the first that is given counts."""

    _breaker: Breaker
    _ended: bool = field(default=False, init=False)

    def progressed(self) -> None:
        """The peer began to answer: a probe need not run to its end for the others to go on."""
        if not self._ended:
            self._breaker._progressed(self)  # noqa: SLF001  the two are one thing

    def succeeded(self) -> None:
        if self._end():
            self._breaker._succeeded(self)  # noqa: SLF001

    def failed(self) -> None:
        if self._end():
            self._breaker._failed(self)  # noqa: SLF001

    def dropped(self) -> None:
        """No verdict: the caller went away, or its time was over."""
        if self._end():
            self._breaker._dropped(self)  # noqa: SLF001

    def _end(self) -> bool:
        was, self._ended = self._ended, True
        return not was
