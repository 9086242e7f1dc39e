"""What the flow counts: one observation a request, one an attempt."""

from penstock.core.clock import Clock
from penstock.core.metrics import Metrics
from penstock.router.estimate import Used
from penstock.router.events import Done, Event, Started
from penstock.router.policy import Attempt
from penstock.router.receipt import OK, outcome_of
from penstock.router.tracing import verdict_name


class Observed:
    """A request under way, from its first step to its end."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._began_seconds = clock.monotonic_seconds()
        self._first_token_seconds: float | None = None
        self._ended = False
        metrics.in_flight.inc()

    def event(self, event: Event) -> None:
        if isinstance(event, Started):
            self._first_token_seconds = self._elapsed_seconds()
        elif isinstance(event, Done):
            receipt = event.receipt
            self._end(
                outcome=OK,
                provider=receipt.provider,
                reason=receipt.reason,
                cache=verdict_name(receipt.cache),
                baseline_cost_nano_usd=receipt.baseline_cost_nano_usd,
            )

    def failed(self, error: BaseException) -> None:
        self._end(outcome=outcome_of(error))

    def _end(
        self,
        *,
        outcome: str,
        provider: str = "none",
        reason: str = "none",
        cache: str = "none",
        baseline_cost_nano_usd: int = 0,
    ) -> None:
        if self._ended:
            return
        self._ended = True
        self._metrics.in_flight.dec()
        self._metrics.request_ended(
            outcome=outcome,
            provider=provider,
            reason=reason,
            cache=cache,
            duration_seconds=self._elapsed_seconds(),
            first_token_seconds=self._first_token_seconds,
            baseline_cost_nano_usd=baseline_cost_nano_usd,
        )

    def _elapsed_seconds(self) -> float:
        return self._clock.monotonic_seconds() - self._began_seconds


def count_attempt(metrics: Metrics, attempt: Attempt, used: Used, outcome: str) -> None:
    metrics.attempt_ended(
        provider=attempt.label,
        model=attempt.model,
        outcome=outcome,
        cost_nano_usd=used.amount_nano_usd,
        prompt_tokens=used.usage.prompt_tokens,
        cached_prompt_tokens=used.usage.cached_prompt_tokens,
        completion_tokens=used.usage.completion_tokens,
    )
