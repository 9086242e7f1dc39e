"""In-memory ports for tests of the flow alone: scripted, and they remember what they were told."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from penstock.cache.v1.cache_pb2 import (
    AbandonRequest,
    LookupRequest,
    LookupResponse,
    StoreRequest,
)
from penstock.core.deadline import Deadline
from penstock.core.errors import BudgetExceeded, PenstockError
from penstock.quota.v1.quota_pb2 import (
    ReserveRequest,
    ReserveResponse,
    SettleRequest,
    VoidRequest,
)
from penstock.router.backends.base import Call, Chunk, Views
from penstock.type.v1.chat_pb2 import FINISH_REASON_STOP, ChoiceDelta, Usage


class MemoryLedger:
    """One budget; every hold must be resolved exactly once."""

    def __init__(self, limit_nano_usd: int = 10**15) -> None:
        self.limit_nano_usd = limit_nano_usd
        self.held: dict[str, ReserveRequest] = {}
        self.settled: list[SettleRequest] = []
        self.voided: list[VoidRequest] = []
        self.down: PenstockError | None = None

    @property
    def posted_nano_usd(self) -> int:
        return sum(s.amount_nano_usd for s in self.settled)

    async def reserve(
        self, request: ReserveRequest, deadline: Deadline, traceparent: str = ""
    ) -> ReserveResponse:
        if self.down:
            raise self.down
        held = sum(r.amount_nano_usd for r in self.held.values())
        if self.posted_nano_usd + held + request.amount_nano_usd > self.limit_nano_usd:
            raise BudgetExceeded("budget 'test' is spent")
        self.held[request.reservation_id] = request
        return ReserveResponse(reservation_id=request.reservation_id)

    async def settle(self, request: SettleRequest, traceparent: str = "") -> bool:
        await asyncio.sleep(0)
        del self.held[request.reservation_id]
        self.settled.append(request)
        return True

    async def void(self, request: VoidRequest, traceparent: str = "") -> bool:
        await asyncio.sleep(0)
        del self.held[request.reservation_id]
        self.voided.append(request)
        return True


class MemoryAnswers:
    def __init__(self) -> None:
        self.entries: dict[tuple[str, bytes], StoreRequest] = {}
        self.abandoned: list[AbandonRequest] = []
        self.down = False

    async def lookup(
        self, request: LookupRequest, deadline: Deadline, traceparent: str = ""
    ) -> LookupResponse | None:
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
            done = True
        finally:
            self.closed_early += not done


def text_answer(text: str = "hi there", *, prompt: int = 10, completion: int = 3) -> Script:
    return [
        Chunk([ChoiceDelta(content=text)], prompt_tokens=prompt, completion_tokens_so_far=2),
        Chunk([ChoiceDelta(finish_reason=FINISH_REASON_STOP)]),
        Chunk(usage=Usage(prompt_tokens=prompt, completion_tokens=completion)),
    ]
