"""What a request is told about itself: who answered, why, and what it cost. Pure."""

from asyncio import CancelledError
from dataclasses import dataclass, field

from penstock.cache.v1.cache_pb2 import Answer, LookupResponse
from penstock.core.catalogue import LOCAL_PROVIDER, Catalogue
from penstock.core.errors import PenstockError
from penstock.router.estimate import Used
from penstock.router.ledger_errors import POOL
from penstock.router.policy import Attempt, Reason
from penstock.router.v1.router_pb2 import (
    CACHE_VERDICT_HIT,
    CACHE_VERDICT_SHARED,
    AttemptOutcome,
    CacheVerdict,
    Receipt,
)
from penstock.type.v1.chat_pb2 import Usage

OK = "ok"
CLIENT_GONE = "CLIENT_GONE"
"""Outcome of an attempt whose caller hung up or ran out of time."""
INTERNAL = "INTERNAL"
"""Outcome of an attempt that our own fault ended."""
CACHE = "cache"
"""The provider of an answer that was stored or shared."""
FAIL_OPEN = "FAIL_OPEN"
"""In place of a reservation's id: a local attempt that went on while the ledger was away (LEDGER,
I15).
"""


def outcome_of(error: BaseException) -> str:
    """How a request or an attempt ended that its upstream did not end."""
    # What is cancelled for a reason of ours has it as its message: see `Running.close`.
    why = error.args[0] if isinstance(error, CancelledError) and error.args else error
    if isinstance(why, PenstockError):
        return why.reason
    return INTERNAL if isinstance(error, Exception) else CLIENT_GONE


@dataclass
class Tally:
    """Sums up a request over all its attempts."""

    request_id: str
    baseline: str
    """Target whose price is the all-paid counterfactual."""
    cache: CacheVerdict.ValueType
    trace_id: str = ""
    outcomes: list[AttemptOutcome] = field(default_factory=list)
    cost_nano_usd: int = 0
    settled: bool = True
    refused_nano_usd: int | None = None
    """The smallest hold that was refused for want of the caller's own money."""

    def hopeless(self, hold_nano_usd: int) -> bool:
        """The caller's own money was refused to as little as this attempt would hold first."""
        return self.refused_nano_usd is not None and hold_nano_usd >= self.refused_nano_usd

    def refuse(self, attempt: Attempt, refusal: PenstockError, hold_nano_usd: int) -> None:
        """Too little was left: nothing was held or sent. A provider's pool says nothing of the
        next provider.
        """
        if refusal.metadata.get("account_kind") != POOL:
            self.refused_nano_usd = hold_nano_usd
        self.add(attempt, outcome=refusal.reason, reservation_id="", used=Used(Usage(), 0))

    def add(self, attempt: Attempt, *, outcome: str, reservation_id: str, used: Used) -> None:
        self.cost_nano_usd += used.amount_nano_usd
        self.outcomes.append(
            AttemptOutcome(
                provider=attempt.label,
                model=attempt.model,
                reason=attempt.reason,
                outcome=outcome,
                reservation_id=reservation_id,
                cost_nano_usd=used.amount_nano_usd,
            )
        )

    def receipt(self, attempt: Attempt, used: Used, catalogue: Catalogue) -> Receipt:
        """Of the attempt that answered; it was added last."""
        baseline = baseline_cost_nano_usd(self.baseline, used.usage, catalogue, attempt.label)
        return Receipt(
            request_id=self.request_id,
            provider=attempt.label,
            model=attempt.model,
            reason=attempt.reason,
            cache=self.cache,
            cost_nano_usd=self.cost_nano_usd,
            baseline_cost_nano_usd=baseline,
            saved_nano_usd=max(0, baseline - self.cost_nano_usd),
            reservation_id=self.outcomes[-1].reservation_id,
            attempts=self.outcomes,
            max_tokens=attempt.max_tokens,
            trace_id=self.trace_id,
            settled=self.settled,
        )

    def facts(self) -> dict[str, str]:
        """For the metadata of an error: what the request was charged before it failed."""
        facts = {"request_id": self.request_id, "cost_nano_usd": str(self.cost_nano_usd)}
        if self.trace_id:
            facts["trace_id"] = self.trace_id
        if self.outcomes:
            facts["reservation_id"] = self.outcomes[-1].reservation_id
            facts["attempts"] = "; ".join(
                f"{o.provider}/{o.model}: {o.reason}: {o.outcome}" for o in self.outcomes
            )
        return facts


def of_stored(
    found: LookupResponse, *, request_id: str, baseline: str, trace_id: str, catalogue: Catalogue
) -> Receipt:
    """Of an answer that lay in the cache, or that an identical request in flight made: it costs
    nothing.
    """
    shared = found.verdict == LookupResponse.VERDICT_SHARED
    answer: Answer = found.answer
    saved = baseline_cost_nano_usd(baseline, answer.usage, catalogue, answer.provider)
    return Receipt(
        request_id=request_id,
        provider=CACHE,
        model=answer.model,
        reason=Reason.SHARED_FLIGHT if shared else Reason.EXACT_HIT,
        cache=CACHE_VERDICT_SHARED if shared else CACHE_VERDICT_HIT,
        cost_nano_usd=0,
        baseline_cost_nano_usd=saved,
        saved_nano_usd=saved,
        max_tokens=answer.max_tokens,
        trace_id=trace_id,
        settled=True,
    )


def baseline_cost_nano_usd(baseline: str, usage: Usage, catalogue: Catalogue, provider: str) -> int:
    """What the baseline model would have charged for these tokens. What `provider`, who answered,
    found in its cache of prompts, the baseline's would have found, too; our own replicas' says
    nothing of a provider's.
    """
    price = catalogue.price_of(baseline)
    assert price is not None  # the catalogue was validated
    return price.cost_nano_usd(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_prompt_tokens=0 if provider == LOCAL_PROVIDER else usage.cached_prompt_tokens,
    )
