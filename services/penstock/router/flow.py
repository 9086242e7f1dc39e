"""A request, top to bottom: the only place where control flow lives.

    look up → plan → for each attempt: reserve (in turn) → dispatch → settle → store & tell

An answer that grows beyond what is held goes on while more can be held, and else ends there: see
`hold.py`.

Whatever ends it (an answer, an error, a client that hangs up, a deadline), the upstream is stopped
first and then every hold is resolved, shielded from cancellation.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

from penstock.cache.v1.cache_pb2 import Answer, LookupResponse
from penstock.core.assemble import Assembler, replay
from penstock.core.catalogue import Catalogue
from penstock.core.clock import Clock
from penstock.core.errors import PenstockError
from penstock.core.metrics import Metrics
from penstock.core.telemetry_request import RequestTrace
from penstock.router import policy, slices, tracing, trial
from penstock.router.backends.base import AttemptFailed, Backend, Billing, Call
from penstock.router.estimate import Used
from penstock.router.events import Delta, Done, Event, Started
from penstock.router.flight import Looked, look_up
from penstock.router.hits import count_hit
from penstock.router.ledger_errors import REFUSALS, is_of_caller, sooner
from penstock.router.observe import Observed, count_attempt
from penstock.router.policy import Ask, Route
from penstock.router.ports import Answers, Landscape, Ledger
from penstock.router.receipt import Tally, of_stored, outcome_of
from penstock.router.request import Request
from penstock.router.trial import Try
from penstock.router.waiting import Waiting
from penstock.type.v1.chat_pb2 import ChatInput

T = TypeVar("T")


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
        waiting: Waiting,
    ) -> None:
        self._catalogue = catalogue
        self._ledger = ledger
        self._answers = answers
        self._landscape = landscape
        self._backends = backends
        self._new_trace = new_trace
        self._metrics = metrics
        self._clock = clock
        self._waiting = waiting
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
            failed_open = self._metrics.failed_open
            await count_hit(self._ledger, request, looked.found, trace, failed_open)
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
        slice_tokens = catalogue.ledger.slice_tokens
        for planned in plan.attempts:
            if tally.hopeless(slices.first_part(planned, slice_tokens).amount_nano_usd):
                continue
            request.deadline.check()
            one = trial.begin(
                policy.after(planned, failure), request, self._ledger, trace,
                index=len(tally.outcomes) + 1, slice_tokens=slice_tokens,
                failed_open=self._metrics.failed_open,
            )  # fmt: skip
            with one.span:
                if refused := await self._refused(request, one, tally):
                    failure = sooner(failure, refused)
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
                    used = await self._resolve(tally, one, one.outcome, Billing.UNKNOWN)
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

    async def _refused(self, request: Request, one: Try, tally: Tally) -> PenstockError | None:
        """Reserves, in turn where a provider's limit is full. Why another target may do better."""
        try:
            await self._waiting.admitted(one.attempt.label, request.deadline, one.hold.reserve)
        except REFUSALS as error:
            one.span.fail(error)
            tally.refuse(one.attempt, error, one.hold.amount_nano_usd)
            if is_of_caller(error):
                raise
            return error
        return None

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
                if not await one.hold.covers(chunk):
                    one.is_cut = True
                    break
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
        if one.is_cut:
            # The upstream has stopped: nothing more is made than is told and charged.
            one.span.event("budget reached")
            self._metrics.ended_by_budget(provider=attempt.label, reason=one.outcome)
            yield Delta(one.hold.slices.last_deltas())

    async def _resolve(self, tally: Tally, one: Try, outcome: str, billing: Billing) -> Used:
        """Settles what the attempt used, or voids its hold where it used nothing (LEDGER, I4,
        I5).
        """
        used = one.meter.used(billing)
        hold = one.hold
        one.span.set(tracing.of_use(used, hold.reservation_id, hold.amount_nano_usd))
        # Told first: what is posted is told and counted even where we are cancelled meanwhile.
        tally.add(one.attempt, outcome=outcome, reservation_id=hold.reservation_id, used=used)
        count_attempt(self._metrics, one.attempt, used, outcome)
        settled = await self._shielded(self._post(tally, one, used, outcome))
        tally.settled = tally.settled and settled
        return used

    async def _post(self, tally: Tally, one: Try, used: Used, outcome: str) -> bool:
        try:
            return await one.hold.resolve(used, outcome, tally.trace_id)
        finally:
            self._waiting.ended(one.attempt.label)

    async def _store(
        self, request: Request, one: Try, used: Used, looked: Looked, catalogue: Catalogue
    ) -> None:
        """Only a complete answer, counted by its upstream, is kept."""
        if one.is_cut or not (one.meter.reported and one.answer.complete(request.choices)):
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
