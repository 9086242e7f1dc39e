"""A request, top to bottom: the only place where control flow lives.

    look up → plan → for each attempt: reserve → dispatch → settle → store & tell

Whatever ends it (an answer, an error, a client that hangs up, a deadline), the upstream is stopped
first and then every hold is resolved, shielded from cancellation.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from penstock.cache.v1.cache_pb2 import Answer, LookupResponse
from penstock.core import ids
from penstock.core.assemble import Assembler, replay
from penstock.core.catalogue import Catalogue
from penstock.core.clock import Clock
from penstock.core.errors import BudgetExceeded, PenstockError, Unavailable
from penstock.core.metrics import Metrics
from penstock.core.telemetry_request import Child, RequestTrace
from penstock.quota.v1.quota_pb2 import (
    POOL_KIND_LOCAL,
    ReserveRequest,
    SettleRequest,
    VoidRequest,
)
from penstock.router import policy, tracing
from penstock.router.backends.base import AttemptFailed, Backend, Billing, Call
from penstock.router.estimate import Meter, Used
from penstock.router.events import Delta, Done, Event, Started
from penstock.router.flight import Looked, look_up
from penstock.router.observe import Observed, count_attempt
from penstock.router.policy import Ask, Attempt, Route
from penstock.router.ports import Answers, Landscape, Ledger
from penstock.router.receipt import FAIL_OPEN, OK, Tally, of_stored, outcome_of
from penstock.router.request import Request
from penstock.type.v1.chat_pb2 import ChatInput, Usage

HOLD_MARGIN_SECONDS = 60
"""A hold outlives its request's deadline by this: settling may be retried so long before it is
late.
"""

T = TypeVar("T")


@dataclass
class Try:
    """One attempt under way."""

    attempt: Attempt
    index: int
    """1 for the request's first."""
    meter: Meter
    span: Child
    reservation_id: str = field(default_factory=ids.uuid7)
    answer: Assembler = field(default_factory=Assembler)
    started: bool = False
    """Something came: a client that streams has seen it, and nothing is retried from here on."""
    kept: list[Event] = field(default_factory=list)
    """What a client that does not stream will get, once it is whole."""


class Flow:
    """The request flow behind both fronts."""

    def __init__(
        self,
        *,
        catalogue: Callable[[], Catalogue],
        ledger: Ledger,
        answers: Answers,
        landscape: Landscape,
        backends: Callable[[str], Backend],
        new_trace: Callable[..., RequestTrace],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._ledger = ledger
        self._answers = answers
        self._landscape = landscape
        self._backends = backends
        self._new_trace = new_trace
        self._metrics = metrics
        self._clock = clock
        self._under_way: set[asyncio.Task[Any]] = set()

    async def run(self, request: Request) -> AsyncGenerator[Event, None]:
        """Started, Delta…, Done; or a PenstockError. Closing it means that the client went away."""
        catalogue = self._catalogue()
        record_prompts = catalogue.telemetry.record_prompts
        trace = self._new_trace(
            f"chat {request.model}",
            tracing.of_request(request, record_prompts=record_prompts),
            parent=request.traceparent,
        )
        seen, said = Observed(self._metrics, self._clock), Assembler()
        try:
            async with aclosing(self._answer(request, catalogue, trace)) as events:
                async for event in events:
                    if record_prompts and isinstance(event, Delta):
                        said.add(event.deltas)
                    elif isinstance(event, Done):
                        trace.finish(
                            tracing.of_answer(said.choices(), record_prompts=record_prompts)
                        )
                    seen.event(event)
                    yield event
        except BaseException as error:
            trace.finish(error=error)
            seen.failed(error)
            raise

    async def _answer(
        self, request: Request, catalogue: Catalogue, trace: RequestTrace
    ) -> AsyncGenerator[Event, None]:
        route = policy.resolve(request.model, catalogue, request.principal.allowed_models)
        with trace.child("cache lookup") as span:
            looked = await look_up(self._answers, request, route, catalogue, span.traceparent)
        if looked.found is not None:
            for event in self._stored(request, route, catalogue, trace, looked.found):
                yield event
            return
        tally = Tally(request.request_id, route.baseline, looked.verdict, trace.trace_id)
        try:
            attempts = self._attempts(request, route, catalogue, trace, looked, tally)
            async with aclosing(attempts) as events:
                async for event in events:
                    yield event
        except BaseException as error:
            trace.set(tracing.of_failure(tally))
            request.facts.update(tally.facts())
            if isinstance(error, PenstockError):
                error.metadata |= request.facts
            raise
        finally:
            await self._shielded(looked.abandon(self._answers))

    async def _attempts(
        self, request: Request, route: Route, catalogue: Catalogue, trace: RequestTrace,
        looked: Looked, tally: Tally,
    ) -> AsyncGenerator[Event, None]:  # fmt: skip
        ask = Ask(request.input, request.choices, request.local_only, request.deadline)
        plan = policy.plan(ask, route, catalogue, self._landscape.views())
        if not plan.attempts:
            raise policy.refusal(ask, route, plan, catalogue)
        failure: PenstockError | None = None
        for planned in plan.attempts:
            if tally.hopeless(planned):
                continue
            request.deadline.check()
            one = _try(policy.after(planned, failure), trace, len(tally.outcomes) + 1)
            with one.span:
                try:
                    await self._reserve(request, one)
                except BudgetExceeded as error:
                    one.span.fail(error)
                    tally.refuse(one.attempt, error.reason)
                    failure = failure or error
                    continue
                try:
                    async with aclosing(self._dispatch(request, one)) as events:
                        async for event in events:
                            if request.stream:
                                yield event
                            else:
                                one.kept.append(event)
                except AttemptFailed as failed:
                    one.span.fail(failed)
                    trace.detail()
                    await self._resolve(tally, one, failed.error.reason, failed.billing)
                    failure = failed.error
                    if (one.started and request.stream) or not failed.fall_back:
                        break
                except BaseException as error:
                    await self._resolve(tally, one, outcome_of(error), Billing.UNKNOWN)
                    raise
                else:
                    used = await self._resolve(tally, one, OK, Billing.UNKNOWN)
                    await self._store(request, one, used, looked, catalogue)
                    receipt = tally.receipt(one.attempt, used, catalogue)
                    trace.set(tracing.of_receipt(receipt))
                    # Its work is done: a front that closes us now has not hung up on it.
                    one.span.end()
                    for event in one.kept:
                        yield event
                    yield Done(used.usage, receipt)
                    return
        assert failure is not None
        raise failure

    def _stored(
        self, request: Request, route: Route, catalogue: Catalogue, trace: RequestTrace,
        found: LookupResponse,
    ) -> Iterator[Event]:  # fmt: skip
        receipt = of_stored(
            found,
            request_id=request.request_id,
            baseline=route.baseline,
            trace_id=trace.trace_id,
            catalogue=catalogue,
        )
        trace.set(tracing.of_receipt(receipt))
        yield self._started(request, receipt.provider, receipt.model)
        for delta in replay(found.answer.choices):
            yield Delta([delta])
        yield Done(found.answer.usage, receipt)

    async def _reserve(self, request: Request, one: Try) -> None:
        """Holds the attempt's bound on the whole path, before a byte is sent."""
        attempt = one.attempt
        ttl_seconds = request.deadline.remaining_seconds() + HOLD_MARGIN_SECONDS
        hold = ReserveRequest(
            reservation_id=one.reservation_id,
            request_id=request.request_id,
            attempt=one.index,
            key_id=request.principal.key_id,
            pool=attempt.pool,
            provider=attempt.label,
            model=attempt.model,
            amount_nano_usd=attempt.cost_bound_nano_usd,
            ttl_ms=int(ttl_seconds * 1000),
            user=request.user,
            tags=request.tags,
        )
        with one.span.child("quota reserve") as span:
            try:
                await self._ledger.reserve(hold, request.deadline, span.traceparent)
            except Unavailable:
                if not (attempt.pool == POOL_KIND_LOCAL and request.principal.fail_open_local):
                    raise
                one.reservation_id = FAIL_OPEN
                self._metrics.failed_open()

    async def _dispatch(self, request: Request, one: Try) -> AsyncGenerator[Event, None]:
        """Sends the attempt, and hands on what comes; what comes is metered and collected."""
        attempt = one.attempt
        chat = ChatInput()
        chat.CopyFrom(request.input)
        chat.max_tokens = attempt.max_tokens
        call = Call(
            request_id=request.request_id,
            model=attempt.model,
            input=chat,
            deadline=request.deadline,
            traceparent=one.span.traceparent,
            wait_seconds_max=attempt.wait_seconds_max,
            user=request.user,
            on_sent=one.meter.sent,
        )
        async with aclosing(self._backends(attempt.provider).generate(call)) as chunks:
            async for chunk in chunks:
                one.meter.add(chunk)
                if not chunk.deltas:
                    continue
                one.answer.add(chunk.deltas)
                if not one.started:
                    one.started = True
                    one.span.event("first token")
                    yield self._started(request, attempt.label, attempt.model)
                yield Delta(chunk.deltas)
        if not one.started:
            one.started = True
            yield self._started(request, attempt.label, attempt.model)

    async def _resolve(self, tally: Tally, one: Try, outcome: str, billing: Billing) -> Used:
        """Settles what the attempt used, or voids its hold where it used nothing (LEDGER, I4,
        I5).
        """
        used = one.meter.used(billing)
        one.span.set(tracing.of_use(used, one.reservation_id))
        # Told first: what is posted is part of the tally even where we are cancelled meanwhile.
        tally.add(one.attempt, outcome=outcome, reservation_id=one.reservation_id, used=used)
        settled = await self._shielded(self._post(tally, one, used, outcome))
        tally.settled = tally.settled and settled
        count_attempt(self._metrics, one.attempt, used, outcome)
        return used

    async def _post(self, tally: Tally, one: Try, used: Used, outcome: str) -> bool:
        if one.reservation_id == FAIL_OPEN:
            return False
        if outcome != OK and used.usage == Usage():
            void = VoidRequest(reservation_id=one.reservation_id, reason=outcome)
            with one.span.child("quota void") as span:
                return await self._ledger.void(void, span.traceparent)
        settle = SettleRequest(
            reservation_id=one.reservation_id,
            amount_nano_usd=used.amount_nano_usd,
            usage=used.usage,
            outcome=outcome,
            trace_id=tally.trace_id,
        )
        with one.span.child("quota settle") as span:
            return await self._ledger.settle(settle, span.traceparent)

    async def _store(
        self, request: Request, one: Try, used: Used, looked: Looked, catalogue: Catalogue
    ) -> None:
        """Only a complete answer, counted by its upstream, is kept."""
        if not (one.meter.reported and one.answer.complete(request.choices)):
            return
        answer = Answer(
            choices=one.answer.choices(),
            usage=used.usage,
            provider=one.attempt.label,
            model=one.attempt.model,
            cost_nano_usd=used.amount_nano_usd,
            request_id=request.request_id,
            max_tokens=one.attempt.max_tokens,
        )
        await self._shielded(looked.store(self._answers, answer, catalogue.cache.ttl_seconds))

    def _started(self, request: Request, provider: str, model: str) -> Started:
        return Started(request.request_id, provider, model, int(self._clock.unix_seconds()))

    async def _shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs to its end, also when the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Returns when all shielded work is done."""
        await asyncio.gather(*self._under_way, return_exceptions=True)


def _try(attempt: Attempt, trace: RequestTrace, index: int) -> Try:
    meter = Meter(
        attempt.price,
        prompt_tokens_bound=attempt.prompt_tokens_bound,
        completion_tokens_bound=attempt.completion_tokens_bound,
        counted=attempt.pool == POOL_KIND_LOCAL,
        reasoning=attempt.reasoning,
    )
    span = trace.child(f"attempt {attempt.label}", tracing.of_attempt(attempt, index))
    return Try(attempt, index, meter, span)
