"""One replica as this router sees it: its channel, its breaker, what we and others have there."""

from collections import deque

import grpc

from penstock.capacity.v1 import capacity_pb2
from penstock.core.catalogue import LocalModel
from penstock.core.clock import Clock
from penstock.local.v1 import local_pb2
from penstock.local.v1.local_pb2_grpc import LocalServiceStub
from penstock.router.breaker import Breaker

REPORT_LAG_SECONDS = 3.0
"""Age of a load report on arrival, at most: it can count calls of ours that have ended since."""

REPORT_SECONDS_MAX = 10.0
"""A load that was reported longer ago says nothing about now."""

REFUSAL_SECONDS = 0.25
"""A replica that said "full" is passed over so long, unless a place of ours there frees before."""

EJECTED_SLOTS = 1
"""What a replica counts for whose breaker would let one probe pass."""


class Replica:
    """Counts are choices, as in `Load`: a request for n of them takes n slots."""

    def __init__(
        self,
        listed: capacity_pb2.Replica,
        *,
        application: str,
        spec: LocalModel | None,
        channel: grpc.aio.Channel,
        breaker: Breaker,
        clock: Clock,
    ) -> None:
        self.id = listed.id
        self.address = listed.address
        self.application = application
        self.breaker = breaker
        self.stub = LocalServiceStub(channel)
        self.slots = spec.slots if spec else 1
        self.queue_limit = spec.queue_limit if spec else 0
        self.service_seconds = 0.0
        self.in_flight = 0
        self.is_ready = False
        self.is_retired = False
        self._channel = channel
        self._clock = clock
        self._others = 0
        self._reported_at = clock.monotonic_seconds()
        self._refused_until = 0.0
        self._peaks: deque[tuple[float, int]] = deque()

    def report(self, load: local_pb2.Load) -> None:
        """Takes over what the replica says of itself; what is not ours belongs to other routers."""
        if load.slots > 0:
            self.slots, self.queue_limit = load.slots, load.queue_limit
        self.service_seconds = load.service_seconds
        self._reported_at = self._clock.monotonic_seconds()
        # Only what cannot have been ours: a phantom would send work to the paid side for nothing,
        # while one too few is put right by the replica's own exact admission.
        self._others = max(0, load.running + load.waiting - self._own_peak())

    @property
    def admits(self) -> bool:
        """Whether a call may be sent there at all."""
        return self.is_ready and not self.is_retired and self.breaker.admits

    @property
    def refuses(self) -> bool:
        """It said "full" a moment ago."""
        return self._clock.monotonic_seconds() < self._refused_until

    @property
    def occupancy(self) -> int:
        """Choices that run or wait there: ours exactly, others' as last reported."""
        age_seconds = self._clock.monotonic_seconds() - self._reported_at
        return self.in_flight + (self._others if age_seconds < REPORT_SECONDS_MAX else 0)

    @property
    def free_slots(self) -> int:
        if self.refuses:
            return 0
        if not self.breaker.is_closed:
            return EJECTED_SLOTS if self.in_flight == 0 else 0
        return max(0, self.slots - self.occupancy)

    @property
    def queue_room(self) -> int:
        if self.refuses or not self.breaker.is_closed:
            return 0
        return min(self.queue_limit, max(0, self.slots + self.queue_limit - self.occupancy))

    def has_room_for(self, choices: int) -> bool:
        """Whether it can take them by our own count; what others have there it knows itself."""
        return not self.refuses and self.in_flight + choices <= self.slots + self.queue_limit

    def enter(self, choices: int) -> None:
        self.in_flight += choices

    def leave(self, choices: int) -> None:
        self._note_peak()
        self.in_flight -= choices
        assert self.in_flight >= 0
        self._refused_until = 0.0

    def refused(self) -> None:
        """It answered RESOURCE_EXHAUSTED. To be told after `leave`, which takes a refusal back."""
        self._refused_until = self._clock.monotonic_seconds() + REFUSAL_SECONDS

    def eject(self) -> None:
        """It said itself that it is dead: nobody is sent there before a probe is due."""
        self.breaker.eject()

    async def close(self) -> None:
        await self._channel.close()

    def _note_peak(self) -> None:
        while self._peaks and self._peaks[-1][1] <= self.in_flight:
            self._peaks.pop()
        self._peaks.append((self._clock.monotonic_seconds(), self.in_flight))

    def _own_peak(self) -> int:
        """The most that we had there within the lag of a report."""
        horizon = self._clock.monotonic_seconds() - REPORT_LAG_SECONDS
        while self._peaks and self._peaks[0][0] < horizon:
            self._peaks.popleft()
        return max(self.in_flight, self._peaks[0][1] if self._peaks else 0)
