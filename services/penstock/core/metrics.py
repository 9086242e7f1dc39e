"""Prometheus metrics of a router. Prefix `penstock_`; money in int nano-USD, time in seconds.

The router tells them at `GET /metrics` on a port of its own, which is not public: see
`router/http/metrics.py`. The flow calls what counts; `unsettled` is read off the ledger's client.

A Prometheus value is a double, exact up to 2^53: nine million USD in nano-USD. The ledger is the
truth.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

LABEL_VALUES_MAX: Final = 200
"""Distinct values of one label. Models and providers come from the catalogue, reasons from our
code: more than this is a client's text that slipped into a label, and would cost every scrape."""

OTHER: Final = "other"

FIRST_TOKEN_SECONDS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
DURATION_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)


class Label:
    """Lets the first `maximum` values through; any further one is "other"."""

    def __init__(self, maximum: int = LABEL_VALUES_MAX) -> None:
        self._maximum = maximum
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._maximum:
            return OTHER
        self._seen.add(value)
        return value


@dataclass(frozen=True)
class _Read(Collector):
    name: str
    text: str
    read: Callable[[], int]

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self.name, self.text, value=self.read())


class Metrics:
    """All of a router's metrics, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._outcome, self._provider, self._reason = Label(), Label(), Label()
        self._cache, self._model = Label(), Label()
        self._requests = self._counter(
            "requests", "Requests that ended.", ["outcome", "provider", "reason", "cache"]
        )
        self._attempts = self._counter(
            "attempts", "Attempts that ended.", ["provider", "model", "outcome"]
        )
        self._cost = self._counter(
            "cost_nano_usd", "What attempts were charged.", ["provider", "model"]
        )
        self._baseline = self._counter(
            "baseline_cost_nano_usd", "What the baseline model would have charged.", []
        )
        self._tokens = self._counter(
            "tokens", "Tokens, as the upstream counted.", ["provider", "model", "kind"]
        )
        self._fail_open = self._counter(
            "fail_open", "Requests answered locally while the ledger was away.", []
        )
        self._first_token = Histogram(
            "penstock_time_to_first_token_seconds", "From the request to its first token.",
            ["provider"], buckets=FIRST_TOKEN_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._duration = Histogram(
            "penstock_request_duration_seconds", "From the request to its end.",
            ["provider"], buckets=DURATION_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "penstock_requests_in_flight", "Requests being answered now.", registry=self.registry
        )
        self.unsettled = Gauge(
            "penstock_ledger_unsettled", "Settles and voids that the ledger has not yet taken.",
            registry=self.registry,
        )  # fmt: skip
        """Whoever holds them says by `set_function` how many there are."""
        self.limit_waiting = Gauge(
            "penstock_limit_waiting", "Attempts that wait until a provider's limit frees up.",
            registry=self.registry,
        )  # fmt: skip
        self._budget_ends = self._counter(
            "budget_ends", "Answers that ended at the edge of a budget.", ["provider", "reason"]
        )

    def request_ended(
        self,
        *,
        outcome: str,
        provider: str = "none",
        reason: str = "none",
        cache: str = "none",
        duration_seconds: float,
        first_token_seconds: float | None = None,
        baseline_cost_nano_usd: int = 0,
    ) -> None:
        """`outcome`: "ok", or the error's reason. Cost is counted by `attempt_ended`."""
        who = self._provider(provider)
        self._requests.labels(
            self._outcome(outcome), who, self._reason(reason), self._cache(cache)
        ).inc()
        self._duration.labels(who).observe(duration_seconds)
        if first_token_seconds is not None:
            self._first_token.labels(who).observe(first_token_seconds)
        self._baseline.inc(baseline_cost_nano_usd)

    def attempt_ended(
        self,
        *,
        provider: str,
        model: str,
        outcome: str,
        cost_nano_usd: int = 0,
        prompt_tokens: int = 0,
        cached_prompt_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> None:
        """What was posted for it; `cached_prompt_tokens` are a part of `prompt_tokens`."""
        who, what = self._provider(provider), self._model(model)
        self._attempts.labels(who, what, self._outcome(outcome)).inc()
        self._cost.labels(who, what).inc(cost_nano_usd)
        for kind, count in (
            ("prompt", prompt_tokens),
            ("cached_prompt", cached_prompt_tokens),
            ("completion", completion_tokens),
        ):
            if count:
                self._tokens.labels(who, what, kind).inc(count)

    def failed_open(self) -> None:
        self._fail_open.inc()

    def ended_by_budget(self, *, provider: str, reason: str) -> None:
        """`reason`: of the refusal."""
        self._budget_ends.labels(self._provider(provider), self._outcome(reason)).inc()

    def count_from(self, name: str, text: str, read: Callable[[], int]) -> None:
        """A counter that somebody else counts: it is read at each scrape."""
        self.registry.register(_Read(f"penstock_{name}", text, read))

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(f"penstock_{name}", text, labels, registry=self.registry)


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The body and the content type of `GET /metrics`."""
    return generate_latest(registry), CONTENT_TYPE_LATEST
