"""Where a request goes: pure rules from (request, catalogue, state) to an ordered list of attempts.

Local first; spill when the local pool has no replica, is full, or its expected wait exceeds what
the deadline leaves. A pinned model goes where it is pinned. `local-only` never leaves. What is left
out says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from penstock.core.catalogue import LOCAL_PROVIDER, Catalogue, LocalModel, PaidModel
from penstock.core.deadline import Deadline
from penstock.core.errors import (
    CapacityExhausted,
    FailedPrecondition,
    FieldViolation,
    InvalidRequest,
    NotFound,
    PenstockError,
    PermissionDenied,
)
from penstock.core.money import Price
from penstock.quota.v1.quota_pb2 import POOL_KIND_LOCAL, POOL_KIND_PAID, PoolKind
from penstock.router.backends.base import PoolView, ProviderView, Views
from penstock.router.estimate import prompt_tokens_max
from penstock.type.v1.chat_pb2 import ChatInput, ToolChoice

RETRY_AFTER_SECONDS_DEFAULT = 1.0
"""Told with a full pool whose wait is not known."""


class Reason(StrEnum):
    """Why a target answers, or was left out."""

    PINNED = "pinned"
    LOCAL_FIRST = "local_first"
    FIRST_TARGET = "first_target"
    SPILL_NO_REPLICA = "spill_no_replica"
    SPILL_FULL = "spill_full"
    SPILL_WAIT = "spill_wait"
    FALLBACK = "fallback"
    ONLY_TARGET = "only_target"
    """Nothing else may answer: it is waited for."""
    LOCAL_ONLY = "local_only"
    PROVIDER_OFF = "provider_off"
    PROVIDER_PAUSED = "provider_paused"
    MAX_TOKENS_BEYOND_MODEL = "max_tokens_beyond_model"
    CHOICES_BEYOND_SLOTS = "choices_beyond_slots"
    TOOLS_UNSUPPORTED = "tools_unsupported"
    PROMPT_UNBOUNDED = "prompt_unbounded"
    EXACT_HIT = "exact_hit"
    SHARED_FLIGHT = "shared_flight"


SPILLS = frozenset({Reason.SPILL_NO_REPLICA, Reason.SPILL_FULL, Reason.SPILL_WAIT})
"""The local pool could answer, only not now."""


@dataclass(frozen=True, slots=True)
class Route:
    """What `model` of a request stands for."""

    targets: tuple[str, ...]
    """`local/<name>` or `<provider>/<name>`, in the order of preference; only those the key may
    use.
    """
    baseline: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    provider: str
    """Key of the backend: "local", or the provider's name in the catalogue."""
    label: str
    """The provider's name in receipts and in the ledger."""
    model: str
    pool: PoolKind.ValueType
    reason: Reason
    price: Price
    prompt_tokens_bound: int
    max_tokens: int
    completion_tokens_bound: int
    """max_tokens over all choices."""
    cost_bound_nano_usd: int
    expected_wait_ms: int = 0
    wait_seconds_max: float = 0.0
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    provider: str
    model: str
    reason: Reason
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    attempts: tuple[Attempt, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """What the rules need to know of a request."""

    chat: ChatInput
    choices: int
    local_only: bool
    deadline: Deadline

    @property
    def remaining_seconds(self) -> float:
        return self.deadline.remaining_seconds()

    @property
    def offers_tools(self) -> bool:
        """The model may call one: whoever cannot must not answer as if there were none."""
        return len(self.chat.tools) > 0 and self.chat.tool_choice.mode != ToolChoice.MODE_NONE


def resolve(model: str, catalogue: Catalogue, allowed: Sequence[str]) -> Route:
    """What a name stands for, for a key that may use `allowed` (patterns; empty: everything).

    Raises:
        NotFound: MODEL_NOT_FOUND.
        PermissionDenied: MODEL_NOT_ALLOWED.
    """
    if alias := catalogue.aliases.get(model):
        targets, baseline, pinned = tuple(alias.targets), catalogue.baseline_of(model), False
    elif catalogue.price_of(model) is not None:
        targets, baseline, pinned = (model,), model, True
    else:
        raise NotFound(
            f"model: {model!r} is neither an alias nor a model of the catalogue; "
            "GET /v1/models or ListModels names them",
            reason="MODEL_NOT_FOUND",
            metadata={"model": model},
        )
    if allowed and not _matches(model, allowed):
        # A key that may use a target may reach it by an alias, and only it.
        targets = tuple(t for t in targets if _matches(t, allowed))
    if not targets:
        raise PermissionDenied(
            f"model: this key may not use {model!r}; it may use {', '.join(allowed)}",
            reason="MODEL_NOT_ALLOWED",
            metadata={"model": model, "allowed_models": ",".join(allowed)},
        )
    return Route(targets, baseline, pinned)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def plan(ask: Ask, route: Route, catalogue: Catalogue, views: Views) -> Plan:
    """The attempts in order. An empty list has at least one rejection: see `refusal`."""
    attempts: list[Attempt] = []
    rejected: list[Rejected] = []
    waiting: list[Attempt] = []
    for target in route.targets:
        found = _weigh(ask, target, catalogue, views)
        if isinstance(found, Rejected):
            rejected.append(found)
            if found.reason in SPILLS:
                waiting.append(_waited_for(ask, target, catalogue))
            continue
        attempts.append(replace(found, reason=_reason(found, route, attempts, rejected)))
    # Where nothing else answers, the pool that cannot now is waited for.
    last = Reason.FALLBACK if attempts else Reason.ONLY_TARGET
    attempts += [replace(w, reason=Reason.PINNED if route.pinned else last) for w in waiting]
    attempts = attempts[: catalogue.routing.attempts_max]
    if attempts and attempts[-1].pool == POOL_KIND_LOCAL:
        # Also where it has room now: of a burst all see the same room, and only some get it.
        margin_seconds = catalogue.routing.wait_margin_ms / 1000
        wait_seconds = max(0.0, ask.remaining_seconds - margin_seconds)
        attempts[-1] = replace(attempts[-1], wait_seconds_max=wait_seconds)
    return Plan(tuple(attempts), tuple(rejected))


def _reason(
    found: Attempt, route: Route, before: Sequence[Attempt], rejected: Sequence[Rejected]
) -> Reason:
    if route.pinned:
        return Reason.PINNED
    if before:
        return Reason.FALLBACK
    if spills := [r.reason for r in rejected if r.reason in SPILLS]:
        return spills[0]
    return Reason.LOCAL_FIRST if found.pool == POOL_KIND_LOCAL else Reason.FIRST_TARGET


def _weigh(ask: Ask, target: str, catalogue: Catalogue, views: Views) -> Attempt | Rejected:
    provider, _, name = target.partition("/")
    if provider == LOCAL_PROVIDER:
        local = catalogue.local(name)
        assert local is not None
        return _weigh_local(ask, name, local, views.pools.get(name, PoolView()), catalogue)
    paid = catalogue.paid(provider, name)
    assert paid is not None
    view = views.providers.get(provider, ProviderView(label=provider))
    return _weigh_paid(ask, (provider, name), paid, view)


def _weigh_local(
    ask: Ask, name: str, model: LocalModel, pool: PoolView, catalogue: Catalogue
) -> Attempt | Rejected:
    attempt = _local_attempt(ask, name, model)
    if isinstance(attempt, Rejected):
        return attempt
    wait_seconds = pool.expected_wait_ms / 1000
    retry_after = wait_seconds or RETRY_AFTER_SECONDS_DEFAULT
    if pool.ready_replicas == 0:
        return Rejected(LOCAL_PROVIDER, name, Reason.SPILL_NO_REPLICA, retry_after)
    if pool.free_slots < ask.choices and pool.queue_room < ask.choices:
        return Rejected(LOCAL_PROVIDER, name, Reason.SPILL_FULL, retry_after)
    margin_seconds = catalogue.routing.wait_margin_ms / 1000
    if pool.expected_wait_ms and wait_seconds + margin_seconds > ask.remaining_seconds:
        return Rejected(LOCAL_PROVIDER, name, Reason.SPILL_WAIT, retry_after)
    return replace(attempt, expected_wait_ms=pool.expected_wait_ms)


def _local_attempt(ask: Ask, name: str, model: LocalModel) -> Attempt | Rejected:
    if ask.choices > model.slots:
        return Rejected(LOCAL_PROVIDER, name, Reason.CHOICES_BEYOND_SLOTS)
    if ask.offers_tools and not model.supports_tools:
        return Rejected(LOCAL_PROVIDER, name, Reason.TOOLS_UNSUPPORTED)
    return _bounded(
        ask,
        Attempt(
            provider=LOCAL_PROVIDER,
            label=LOCAL_PROVIDER,
            model=name,
            pool=POOL_KIND_LOCAL,
            reason=Reason.LOCAL_FIRST,
            price=model.tariff.price,
            prompt_tokens_bound=0,
            max_tokens=model.max_output_tokens,
            completion_tokens_bound=0,
            cost_bound_nano_usd=0,
        ),
        prompt_tokens_max(
            ask.chat,
            template=model.template,
            context_tokens=model.context_tokens,
            image_tokens_max=None,
        ),
    )


def _waited_for(ask: Ask, target: str, catalogue: Catalogue) -> Attempt:
    """At a pool that cannot answer now."""
    name = target.partition("/")[2]
    model = catalogue.local(name)
    assert model is not None
    attempt = _local_attempt(ask, name, model)
    # It was weighed before, and only its pool was found wanting.
    assert isinstance(attempt, Attempt)
    return attempt


def _weigh_paid(
    ask: Ask, target: tuple[str, str], model: PaidModel, view: ProviderView
) -> Attempt | Rejected:
    provider, name = target
    if ask.local_only:
        return Rejected(view.label, name, Reason.LOCAL_ONLY)
    if not view.enabled:
        return Rejected(view.label, name, Reason.PROVIDER_OFF)
    attempt = _bounded(
        ask,
        Attempt(
            provider=provider,
            label=view.label,
            model=name,
            pool=POOL_KIND_PAID,
            reason=Reason.FIRST_TARGET,
            price=model.price.price,
            prompt_tokens_bound=0,
            max_tokens=model.max_output_tokens,
            completion_tokens_bound=0,
            cost_bound_nano_usd=0,
            reasoning=model.reasoning,
        ),
        prompt_tokens_max(
            ask.chat,
            template=model.template,
            context_tokens=model.context_tokens,
            image_tokens_max=model.image_tokens_max,
        ),
    )
    # The last that is asked: whoever comes back after the pause is not told of a fault only then.
    if isinstance(attempt, Attempt) and view.retry_after_seconds is not None:
        return Rejected(view.label, name, Reason.PROVIDER_PAUSED, view.retry_after_seconds)
    return attempt


def _bounded(ask: Ask, attempt: Attempt, prompt_tokens: int | None) -> Attempt | Rejected:
    """The attempt with its bounds: the hold follows from what is sent, never shrunk (I13)."""
    if prompt_tokens is None:
        return Rejected(attempt.label, attempt.model, Reason.PROMPT_UNBOUNDED)
    max_tokens = attempt.max_tokens
    if ask.chat.HasField("max_tokens"):
        if ask.chat.max_tokens > max_tokens:
            return Rejected(attempt.label, attempt.model, Reason.MAX_TOKENS_BEYOND_MODEL)
        max_tokens = ask.chat.max_tokens
    completion_tokens = max_tokens * ask.choices
    return replace(
        attempt,
        prompt_tokens_bound=prompt_tokens,
        max_tokens=max_tokens,
        completion_tokens_bound=completion_tokens,
        cost_bound_nano_usd=attempt.price.bound_nano_usd(
            prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
        ),
    )


def after(planned: Attempt, failure: PenstockError | None) -> Attempt:
    """The attempt with its reason as it turned out: a pool that refused was full after all."""
    if isinstance(failure, CapacityExhausted) and planned.reason is Reason.FALLBACK:
        return replace(planned, reason=Reason.SPILL_FULL)
    return planned


def refusal(ask: Ask, route: Route, the_plan: Plan, catalogue: Catalogue) -> PenstockError:
    """Why no target may even be tried: what passes by itself comes first, then what the caller
    can mend.
    """
    assert not the_plan.attempts
    assert the_plan.rejected
    reasons = {r.reason for r in the_plan.rejected}
    told = "; ".join(f"{r.provider}/{r.model}: {r.reason}" for r in the_plan.rejected)
    pauses = [r.retry_after_seconds for r in the_plan.rejected if r.retry_after_seconds is not None]
    if pauses:
        return CapacityExhausted(
            f"nothing can answer now ({told})", retry_after_seconds=min(pauses)
        )
    if Reason.MAX_TOKENS_BEYOND_MODEL in reasons:
        # Of those that would answer if it were less: the others are out of reach anyhow.
        limit = max(
            catalogue.max_output_tokens_of(target) or 0
            for target, rejected in zip(route.targets, the_plan.rejected, strict=True)
            if rejected.reason is Reason.MAX_TOKENS_BEYOND_MODEL
        )
        return _at_fault(
            "input.max_tokens",
            f"{ask.chat.max_tokens} is more than the model's {limit}; ask for less",
        )
    if Reason.CHOICES_BEYOND_SLOTS in reasons:
        slots = max(m.slots for t in route.targets if (m := catalogue.local(t.partition("/")[2])))
        return _at_fault("input.n", f"{ask.choices} is more than the {slots} slots of a replica")
    if Reason.PROMPT_UNBOUNDED in reasons:
        return _at_fault(
            "input.messages", "an image's tokens cannot be bounded for this model; send text only"
        )
    if Reason.TOOLS_UNSUPPORTED in reasons:
        return _at_fault(
            "input.tools",
            f"nothing behind this name can call them ({told}); name a model with supports_tools, "
            "or set tool_choice to none",
        )
    if Reason.LOCAL_ONLY in reasons:
        return FailedPrecondition(
            f"the data class is local-only, and no local model stands behind this name ({told})",
            reason="DATA_CLASS_LOCAL_ONLY",
        )
    return FailedPrecondition(
        f"the paid side is off: its API key is not configured ({told}); name a local model, or have"
        " the router's operator set the key",
        reason="PROVIDER_OFF",
    )


def _at_fault(field: str, description: str) -> InvalidRequest:
    return InvalidRequest.of([FieldViolation(field, description)])
