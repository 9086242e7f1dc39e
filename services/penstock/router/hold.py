"""What the ledger holds for one attempt: reserved, extended while the answer comes, resolved once.

An extension is asked for while half a slice is still left, beside the stream, so that the stream
does not wait for it. One that is refused is not asked for again: the answer goes on until what is
held is used up, and ends there: as one at the edge of a budget, or, where the key may not go on at
all (it was revoked meanwhile), as that error.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.core import ids
from penstock.core.errors import (
    DeadlineExceeded,
    PenstockError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from penstock.core.telemetry_request import Child
from penstock.quota.v1.quota_pb2 import (
    POOL_KIND_LOCAL,
    ExtendRequest,
    ReserveRequest,
    SettleRequest,
    VoidRequest,
)
from penstock.router.backends.base import Chunk
from penstock.router.estimate import Meter, Used
from penstock.router.ledger_errors import ends_as_budget
from penstock.router.policy import Attempt
from penstock.router.ports import Ledger
from penstock.router.receipt import FAIL_OPEN, OK
from penstock.router.request import Request
from penstock.router.slices import Part, Slices
from penstock.type.v1.chat_pb2 import Usage

logger = logging.getLogger(__name__)

HOLD_MARGIN_SECONDS = 60
"""A hold outlives its request's deadline by this: settling may be retried so long before it is
late.
"""

_OF_THE_KEY = (Unauthenticated, PermissionDenied)
"""It was revoked, has expired, or its account was suspended meanwhile."""


def ttl_ms_of(request: Request) -> int:
    return int((request.deadline.remaining_seconds() + HOLD_MARGIN_SECONDS) * 1000)


def reserve_request(request: Request, attempt: Attempt, part: Part, index: int) -> ReserveRequest:
    """What the request's `index`-th attempt asks of the ledger, under a new id."""
    return ReserveRequest(
        reservation_id=ids.uuid7(),
        request_id=request.request_id,
        attempt=index,
        key_id=request.principal.key_id,
        pool=attempt.pool,
        provider=attempt.label,
        model=attempt.model,
        amount_nano_usd=part.amount_nano_usd,
        tokens=part.tokens,
        ttl_ms=ttl_ms_of(request),
        user=request.user,
        tags=request.tags,
    )


@dataclass(eq=False)
class Hold:
    """Of one attempt. `failed_open` is called where it goes on although the ledger is away."""

    ledger: Ledger
    request: Request
    slices: Slices
    meter: Meter
    span: Child
    index: int
    """1 for the request's first attempt."""
    failed_open: Callable[[], None]
    reservation_id: str = field(default="", init=False)
    refusal: PenstockError | None = field(default=None, init=False)
    """Why no more can be held."""
    _is_open_ended: bool = field(default=False, init=False)
    _lost: PenstockError | None = field(default=None, init=False)
    """Why the last extension had no answer."""
    _extending: "asyncio.Task[None] | None" = field(default=None, init=False)

    @property
    def amount_nano_usd(self) -> int:
        return self.slices.held.amount_nano_usd

    async def reserve(self) -> None:
        """Holds the first slice on the whole path, before a byte is sent. Each time under a new id:
        the ledger remembers those that it refused.

        Raises:
            PenstockError: see `ports.Ledger.reserve`.
        """
        slices = self.slices
        hold = reserve_request(self.request, slices.attempt, slices.held, self.index)
        self.reservation_id = hold.reservation_id
        with self.span.child("quota reserve") as span:
            try:
                await self.ledger.reserve(hold, self.request.deadline, span.traceparent)
            except Unavailable:
                if not self._may_fail_open:
                    raise
                self.reservation_id = FAIL_OPEN
                self._fail_open()

    async def covers(self, chunk: Chunk) -> bool:
        """Whether the chunk may be handed on. False: it lies beyond the budget; see `refusal`.

        Raises:
            Unauthenticated, PermissionDenied: more must be held for it, and the key may spend no
                more.
            Unavailable, DeadlineExceeded: more must be held for it, and the ledger is silent.
        """
        slices = self.slices
        is_count = chunk.usage is not None and not chunk.deltas
        if self._is_open_ended or slices.is_whole or is_count:
            return True
        needed = slices.needed(chunk, self.meter.after(chunk))
        while not (self._is_open_ended or slices.holds(needed)):
            if self.refusal is not None:
                if ends_as_budget(self.refusal):
                    return False
                raise self.refusal
            extending = self._extending or self._extend(needed)
            await asyncio.wait({extending})
            extending.result()
            if self._lost is not None:
                if isinstance(self._lost, DeadlineExceeded) or not self._may_fail_open:
                    raise self._lost
                self._fail_open()
        slices.hand_on(chunk)
        asked = self.refusal or self._lost or self._extending
        if slices.is_low(needed) and not asked:
            self._extend(needed)
        return True

    async def resolve(self, used: Used, outcome: str, trace_id: str) -> bool:
        """Settles what was used, or voids the hold of what used nothing (LEDGER, I4, I5). Whether
        the ledger has it.
        """
        if self._extending is not None:
            # One that is on its way does no harm: it finds its hold gone, or makes it larger first.
            self._extending.cancel()
        if self.reservation_id == FAIL_OPEN:
            return False
        if outcome != OK and used.usage == Usage():
            void = VoidRequest(
                reservation_id=self.reservation_id,
                reason=outcome,
                key_id=self.request.principal.key_id,
            )
            with self.span.child("quota void") as span:
                return await self.ledger.void(void, span.traceparent)
        settle = SettleRequest(
            reservation_id=self.reservation_id,
            amount_nano_usd=used.amount_nano_usd,
            usage=used.usage,
            outcome=outcome,
            trace_id=trace_id,
            key_id=self.request.principal.key_id,
        )
        with self.span.child("quota settle") as span:
            return await self.ledger.settle(settle, span.traceparent)

    def _extend(self, needed: int) -> "asyncio.Task[None]":
        self._lost = None
        self._extending = asyncio.create_task(self._ask_for(self.slices.next(needed)))
        return self._extending

    async def _ask_for(self, part: Part) -> None:
        extend = ExtendRequest(
            reservation_id=self.reservation_id,
            amount_nano_usd=part.amount_nano_usd,
            tokens=part.tokens,
            ttl_ms=ttl_ms_of(self.request),
            key_id=self.request.principal.key_id,
        )
        try:
            with self.span.child("quota extend") as span:
                await self.ledger.extend(extend, self.request.deadline, span.traceparent)
            self.slices.held = part
        except (Unavailable, DeadlineExceeded) as error:
            self._lost = error
        except PenstockError as error:
            self.refusal = error
            if not (ends_as_budget(error) or isinstance(error, _OF_THE_KEY)):
                logger.exception("the ledger refused to extend %s", self.reservation_id)
        finally:
            self._extending = None

    @property
    def _may_fail_open(self) -> bool:
        local = self.slices.attempt.pool == POOL_KIND_LOCAL
        return local and self.request.principal.fail_open_local

    def _fail_open(self) -> None:
        self._is_open_ended = True
        self.failed_open()
