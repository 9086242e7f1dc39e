"""The plan for a request, told and not carried out: nothing is spent, reserved or sent."""

import asyncio

from penstock.core.catalogue import Catalogue
from penstock.core.errors import PenstockError, Unavailable
from penstock.quota.v1.quota_pb2 import ReserveRequest
from penstock.router import policy
from penstock.router.flight import is_stored
from penstock.router.hold import reserve_request
from penstock.router.policy import Ask, Attempt
from penstock.router.ports import Answers, Landscape, Ledger
from penstock.router.request import Request
from penstock.router.slices import first_part
from penstock.router.v1.router_pb2 import (
    ExplainRouteResponse,
    PlannedAttempt,
    Refusal,
    RejectedTarget,
)


async def explain(
    request: Request,
    *,
    catalogue: Catalogue,
    ledger: Ledger,
    answers: Answers,
    landscape: Landscape,
) -> ExplainRouteResponse:
    """What `Flow.run` would do with this request now, and whether each attempt has the money."""
    route = policy.resolve(request.model, catalogue, request.principal.allowed_models)
    ask = Ask(request.input, request.choices, request.local_only, request.deadline)
    plan = policy.plan(ask, route, catalogue, landscape.views())
    slice_tokens = catalogue.ledger.slice_tokens
    holds = [
        reserve_request(request, attempt, first_part(attempt, slice_tokens), index)
        for index, attempt in enumerate(plan.attempts, 1)
    ]
    cached, attempts = await asyncio.gather(
        is_stored(answers, request, route, catalogue),
        asyncio.gather(
            *(
                _planned(attempt, hold, request, ledger)
                for attempt, hold in zip(plan.attempts, holds, strict=True)
            )
        ),
    )
    if not (attempts or cached):
        raise policy.refusal(ask, route, plan, catalogue)
    return ExplainRouteResponse(
        attempts=attempts,
        rejected=[
            RejectedTarget(provider=r.provider, model=r.model, reason=r.reason)
            for r in plan.rejected
        ],
        prompt_tokens_max=max((a.prompt_tokens_bound for a in plan.attempts), default=0),
        cached=cached,
        baseline_model=route.baseline,
    )


async def _planned(
    attempt: Attempt, hold: ReserveRequest, request: Request, ledger: Ledger
) -> PlannedAttempt:
    """With what the ledger says to it, if it says anything."""
    planned = PlannedAttempt(
        provider=attempt.label,
        model=attempt.model,
        reason=attempt.reason,
        cost_bound_nano_usd=attempt.cost_bound_nano_usd,
        expected_wait_ms=attempt.expected_wait_ms,
        max_tokens=attempt.max_tokens,
    )
    try:
        await ledger.preview(hold, request.deadline)
        planned.admitted = True
    except Unavailable:
        pass  # nothing is known, and nothing is said
    except PenstockError as error:
        planned.admitted = False
        planned.refusal.CopyFrom(_refusal(error))
    return planned


def _refusal(error: PenstockError) -> Refusal:
    refusal = Refusal(reason=error.reason, message=error.message, metadata=error.metadata)
    if error.retry_after_seconds is not None:
        refusal.retry_after_ms = round(error.retry_after_seconds * 1000)
    return refusal
