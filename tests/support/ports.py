"""In-memory ports for tests of the flow alone: scripted, and they remember what they were told."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from penstock.cache.v1.cache_pb2 import (
    AbandonRequest,
    LookupRequest,
    LookupResponse,
    StoreRequest,
)
from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.core.errors import BudgetExceeded, FailedPrecondition, PenstockError, RateLimited
from penstock.quota.v1.quota_pb2 import (
    POOL_KIND_CACHE,
    ExtendRequest,
    ExtendResponse,
    ReserveRequest,
    ReserveResponse,
    SettleRequest,
    VoidRequest,
)
from penstock.router.backends.base import Call, Chunk, Views
from penstock.router.waiting import Limits, Waiting
from penstock.type.v1.chat_pb2 import FINISH_REASON_STOP, ChoiceDelta, Usage


class MemoryLedger:
    """One budget; every hold must be resolved exactly once."""

    def __init__(self, limit_nano_usd: int = 10**15) -> None:
        self.limit_nano_usd = limit_nano_usd
        self.held: dict[str, ReserveRequest] = {}
        self.settled: list[SettleRequest] = []
        self.overages: list[SettleRequest] = []
        self.voided: list[VoidRequest] = []
        self.counted: list[ReserveRequest] = []
        """Hits of the cache: they hold nothing."""
        self.reserves: list[ReserveRequest] = []
        """All that were asked for, in this order; also those that were refused."""
        self.previews: list[ReserveRequest] = []
        self.extends: list[ExtendRequest] = []
        self.refusals: list[PenstockError] = []
        """Each refuses one reserve or preview, first come, first served."""
        self.extension: PenstockError | None = None
        """Refuses each extension."""
        self.extension_faults: list[PenstockError] = []
        """Each fails one extension, first come, first served."""
        self.refused_extensions = 0
        self.extension_gate: asyncio.Event | None = None
        """Set: extensions are answered only once it is."""
        self.down: PenstockError | None = None

    @property
    def posted_nano_usd(self) -> int:
        return sum(s.amount_nano_usd for s in self.settled)

    async def reserve(
        self, request: ReserveRequest, deadline: Deadline, traceparent: str = ""
    ) -> ReserveResponse:
        asked = ReserveRequest()
        asked.CopyFrom(request)
        self.reserves.append(asked)
        if self.down:
            raise self.down
        if self.refusals:
            raise self.refusals.pop(0)
        if request.pool == POOL_KIND_CACHE:
            self.counted.append(request)
            return ReserveResponse(reservation_id=request.reservation_id)
        self._take(request.amount_nano_usd)
        self.held[request.reservation_id] = request
        return ReserveResponse(reservation_id=request.reservation_id)

    async def preview(self, request: ReserveRequest, deadline: Deadline) -> ReserveResponse:
        self.previews.append(request)
        if self.down:
            raise self.down
        if self.refusals:
            raise self.refusals.pop(0)
        self._take(request.amount_nano_usd)
        return ReserveResponse(reservation_id=request.reservation_id)

    async def extend(
        self, request: ExtendRequest, deadline: Deadline, traceparent: str = ""
    ) -> ExtendResponse:
        self.extends.append(request)
        if self.extension_gate is not None:
            await self.extension_gate.wait()
        await asyncio.sleep(0)
        if self.down:
            raise self.down
        if self.extension_faults:
            raise self.extension_faults.pop(0)
        try:
            return self._extended(request)
        except PenstockError:
            self.refused_extensions += 1
            raise

    def _extended(self, request: ExtendRequest) -> ExtendResponse:
        if self.extension:
            raise self.extension
        hold = self.held.get(request.reservation_id)
        if hold is None:
            raise FailedPrecondition("the hold is gone", reason="RESERVATION_EXPIRED")
        self._take(max(0, request.amount_nano_usd - hold.amount_nano_usd))
        hold.amount_nano_usd = max(hold.amount_nano_usd, request.amount_nano_usd)
        hold.tokens = max(hold.tokens, request.tokens)
        return ExtendResponse(amount_nano_usd=hold.amount_nano_usd)

    def _take(self, amount_nano_usd: int) -> None:
        held = sum(r.amount_nano_usd for r in self.held.values())
        if self.posted_nano_usd + held + amount_nano_usd > self.limit_nano_usd:
            raise BudgetExceeded("budget 'test' is spent")

    async def settle(self, request: SettleRequest, traceparent: str = "") -> bool:
        await asyncio.sleep(0)
        hold = self.held.pop(request.reservation_id)
        if request.amount_nano_usd > hold.amount_nano_usd:
            self.overages.append(request)
        self.settled.append(request)
        return True

    async def void(self, request: VoidRequest, traceparent: str = "") -> bool:
        await asyncio.sleep(0)
        del self.held[request.reservation_id]
        self.voided.append(request)
        return True


def limited(
    kind: str = "pool",
    *,
    id_: str = "pool_1",
    unit: str = "requests",
    after_seconds: float | None = 0.05,
) -> RateLimited:
    """A rate limit's refusal, as `ledger_errors.error_of` makes it of the ledger's."""
    facts = {"limit_id": "limit_1", "account_kind": kind, "account_id": id_, "unit": unit}
    return RateLimited("limit is full", metadata=facts, retry_after_seconds=after_seconds)


def waiting(waiting_max: int = 100, margin_seconds: float = 0.01) -> Waiting:
    return Waiting(lambda: Limits(waiting_max, margin_seconds), SystemClock())


class MemoryAnswers:
    def __init__(self) -> None:
        self.entries: dict[tuple[str, bytes], StoreRequest] = {}
        self.asked: list[LookupRequest] = []
        self.abandoned: list[AbandonRequest] = []
        self.down = False

    async def lookup(
        self, request: LookupRequest, deadline: Deadline, traceparent: str = ""
    ) -> LookupResponse | None:
        self.asked.append(request)
        if self.down:
            return None
        if found := self.entries.get((request.org_id, request.fingerprint)):
            return LookupResponse(verdict=LookupResponse.VERDICT_HIT, answer=found.answer)
        if request.join_flight:
            return LookupResponse(verdict=LookupResponse.VERDICT_LEAD, flight_token="flight-1")
        return LookupResponse(verdict=LookupResponse.VERDICT_MISS)

    async def store(self, request: StoreRequest, traceparent: str = "") -> None:
        if not request.no_store:
            self.entries[request.org_id, request.fingerprint] = request

    async def abandon(self, request: AbandonRequest, traceparent: str = "") -> None:
        self.abandoned.append(request)


class FixedLandscape:
    def __init__(self, views: Views) -> None:
        self._views = views

    def views(self) -> Views:
        return self._views


Script = Sequence[Chunk | Exception | None]
"""Chunks to give, an exception to raise, or None: to wait until it is closed."""


class ScriptedBackend:
    """Plays a script, and remembers the calls and whether it was closed early."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sends = True
        """False: it never comes so far that a call leaves."""
        self.calls: list[Call] = []
        self.closed_early = 0

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        self.calls.append(call)
        if self.sends:
            call.on_sent()
        done = False
        try:
            for step in self.script:
                if step is None:
                    await asyncio.Event().wait()
                elif isinstance(step, Exception):
                    done = True
                    raise step
                else:
                    yield step
                    await asyncio.sleep(0)
            done = True
        finally:
            self.closed_early += not done


def text_answer(text: str = "hi there", *, prompt: int = 10, completion: int = 3) -> Script:
    return [
        Chunk([ChoiceDelta(content=text)], prompt_tokens=prompt, completion_tokens_so_far=2),
        Chunk([ChoiceDelta(finish_reason=FINISH_REASON_STOP)]),
        Chunk(usage=Usage(prompt_tokens=prompt, completion_tokens=completion)),
    ]


def local_words(count: int) -> Script:
    """One token a word, counted by the engine."""
    words = [
        Chunk([ChoiceDelta(content="word ")], prompt_tokens=10, completion_tokens_so_far=n + 1)
        for n in range(count)
    ]
    end = Chunk([ChoiceDelta(finish_reason=FINISH_REASON_STOP)], completion_tokens_so_far=count)
    usage = Usage(prompt_tokens=10, completion_tokens=count)
    return [*words, end, Chunk(usage=usage)]
