"""What the flow needs of the other services, as Protocols: `ledger.py` and `answers.py` speak the
wire.
"""

from typing import Protocol

from penstock.cache.v1.cache_pb2 import (
    AbandonRequest,
    LookupRequest,
    LookupResponse,
    StoreRequest,
)
from penstock.core.deadline import Deadline
from penstock.quota.v1.quota_pb2 import (
    ExtendRequest,
    ExtendResponse,
    ReserveRequest,
    ReserveResponse,
    SettleRequest,
    VoidRequest,
)
from penstock.router.backends.base import Views


class Ledger(Protocol):
    """The quota service. Retries with the same id until there is an answer (LEDGER, the router's
    side).
    """

    async def reserve(
        self, request: ReserveRequest, deadline: Deadline, traceparent: str = ""
    ) -> ReserveResponse:
        """Holds, or raises.

        Raises:
            BudgetExceeded: names the budget, its window and its reset.
            RateLimited: names the limit; `retry_after_seconds` where it frees up by itself.
            CreditExhausted: names the prepaid account.
            Unavailable: LEDGER_UNAVAILABLE; a hold whose answer was lost is voided in the
            background.
            DeadlineExceeded, InvalidRequest, Conflict: as the quota service says.
        """
        ...

    async def preview(self, request: ReserveRequest, deadline: Deadline) -> ReserveResponse:
        """What `reserve` would answer or raise now; nothing is held, and nothing tried again.

        Raises:
            Unavailable: the ledger did not say.
        """
        ...

    async def extend(
        self, request: ExtendRequest, deadline: Deadline, traceparent: str = ""
    ) -> ExtendResponse:
        """Holds as much in all as the request says, or raises like `reserve`; what was held stays.

        Raises:
            FailedPrecondition: the hold is there no more.
        """
        ...

    async def settle(self, request: SettleRequest, traceparent: str = "") -> bool:
        """Posts. True: the ledger has it. False: it is out of reach, and goes on being told."""
        ...

    async def void(self, request: VoidRequest, traceparent: str = "") -> bool:
        """Gives a hold back; like `settle`."""
        ...


class Answers(Protocol):
    """The cache service. Never an error: out of reach is `None`, within a short time-out."""

    async def lookup(
        self, request: LookupRequest, deadline: Deadline, traceparent: str = ""
    ) -> LookupResponse | None: ...

    async def store(self, request: StoreRequest, traceparent: str = "") -> None: ...

    async def abandon(self, request: AbandonRequest, traceparent: str = "") -> None: ...


class Landscape(Protocol):
    """What can answer now."""

    def views(self) -> Views: ...
