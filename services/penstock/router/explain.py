"""The plan for a request, told and not carried out: nothing is spent, reserved or sent."""

from penstock.cache.v1.cache_pb2 import LookupRequest
from penstock.core.catalogue import Catalogue
from penstock.router import policy
from penstock.router.fingerprint import fingerprint
from penstock.router.policy import Ask
from penstock.router.ports import Answers, Landscape
from penstock.router.request import Request
from penstock.router.v1.router_pb2 import ExplainRouteResponse, PlannedAttempt, RejectedTarget


async def explain(
    request: Request, *, catalogue: Catalogue, answers: Answers, landscape: Landscape
) -> ExplainRouteResponse:
    """What `Flow.run` would do with this request now."""
    route = policy.resolve(request.model, catalogue, request.principal.allowed_models)
    ask = Ask(request.input, request.choices, request.local_only, request.deadline)
    plan = policy.plan(ask, route, catalogue, landscape.views())
    if not plan.attempts:
        raise policy.refusal(ask, route, plan, catalogue)
    look = LookupRequest(
        fingerprint=fingerprint(request, route.targets), org_id=request.principal.org_id
    )
    found = await answers.lookup(look, request.deadline)
    return ExplainRouteResponse(
        attempts=[
            PlannedAttempt(
                provider=a.label,
                model=a.model,
                reason=a.reason,
                cost_bound_nano_usd=a.cost_bound_nano_usd,
                expected_wait_ms=a.expected_wait_ms,
                max_tokens=a.max_tokens,
            )
            for a in plan.attempts
        ],
        rejected=[
            RejectedTarget(provider=r.provider, model=r.model, reason=r.reason)
            for r in plan.rejected
        ],
        prompt_tokens_max=max(a.prompt_tokens_bound for a in plan.attempts),
        cached=found is not None and found.HasField("answer"),
        baseline_model=route.baseline,
    )
