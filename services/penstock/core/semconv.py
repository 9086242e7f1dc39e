"""Names of span attributes: OpenTelemetry's GenAI conventions, the proposed cost ones, and ours.

Money is exact in `penstock.*_nano_usd` (int). Its rule against counting twice:

- `penstock.cost_nano_usd` is on the span of a request, always: what the request was charged, all
  attempts together. **Summed over all spans it is what the ledger posted.**
- `penstock.attempt.cost_nano_usd` is on the span of each attempt, where the trace is detailed.
- `gen_ai.usage.*` is on the attempts, and on the request's span only where its attempts have none.
  (A replica's own span repeats its engine's token counts, as a server's view; never money.)

`gen_ai.usage.cost.{amount,currency,source}` is the proposal of
open-telemetry/semantic-conventions-genai, pull request 443 (open): amount a double in units of the
ISO 4217 currency, source "provider" or "local" (computed by whoever records it). It is for other
tools; nothing of ours reads that double.
"""

from typing import Final, TypeAlias

from opentelemetry.semconv._incubating.attributes import error_attributes as error
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai

from penstock.core.money import NANO_PER_USD

Value: TypeAlias = str | bool | int | float | tuple[str, ...]
Attributes: TypeAlias = dict[str, Value]

OPERATION: Final = gen_ai.GEN_AI_OPERATION_NAME
PROVIDER: Final = gen_ai.GEN_AI_PROVIDER_NAME
REQUEST_MODEL: Final = gen_ai.GEN_AI_REQUEST_MODEL
REQUEST_CHOICES: Final = gen_ai.GEN_AI_REQUEST_CHOICE_COUNT
REQUEST_MAX_TOKENS: Final = gen_ai.GEN_AI_REQUEST_MAX_TOKENS
REQUEST_TEMPERATURE: Final = gen_ai.GEN_AI_REQUEST_TEMPERATURE
REQUEST_TOP_P: Final = gen_ai.GEN_AI_REQUEST_TOP_P
RESPONSE_MODEL: Final = gen_ai.GEN_AI_RESPONSE_MODEL
FINISH_REASONS: Final = gen_ai.GEN_AI_RESPONSE_FINISH_REASONS
"""On a request's span: only where we ended its answer (`BUDGET`), not its model."""
TIME_TO_FIRST_CHUNK: Final = gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK
"""Seconds, double."""
INPUT_TOKENS: Final = gen_ai.GEN_AI_USAGE_INPUT_TOKENS
OUTPUT_TOKENS: Final = gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS
CACHED_INPUT_TOKENS: Final = gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS
REASONING_TOKENS: Final = gen_ai.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS
INPUT_MESSAGES: Final = gen_ai.GEN_AI_INPUT_MESSAGES
OUTPUT_MESSAGES: Final = gen_ai.GEN_AI_OUTPUT_MESSAGES
ERROR_TYPE: Final = error.ERROR_TYPE

COST_AMOUNT: Final = "gen_ai.usage.cost.amount"
COST_CURRENCY: Final = "gen_ai.usage.cost.currency"
COST_SOURCE: Final = "gen_ai.usage.cost.source"

REQUEST_ID: Final = "penstock.request_id"
CLIENT_REQUEST_ID: Final = "penstock.client_request_id"
ORGANISATION: Final = "penstock.organisation"
TEAM: Final = "penstock.team"
KEY_ID: Final = "penstock.key_id"
"""The key's public id, never the key."""
REASON: Final = "penstock.reason"
CACHE: Final = "penstock.cache"
RESERVATION_ID: Final = "penstock.reservation_id"
COST_NANO_USD: Final = "penstock.cost_nano_usd"
BASELINE_COST_NANO_USD: Final = "penstock.baseline_cost_nano_usd"
SAVED_NANO_USD: Final = "penstock.saved_nano_usd"
ATTEMPT_COST_NANO_USD: Final = "penstock.attempt.cost_nano_usd"
ATTEMPT_INDEX: Final = "penstock.attempt.index"
HELD_NANO_USD: Final = "penstock.held_nano_usd"
ESTIMATED: Final = "penstock.estimated"
"""True: no usage report came, the tokens and the cost are an upper bound (LEDGER, I5)."""
SETTLED: Final = "penstock.settled"
ATTEMPTS: Final = "penstock.attempts"
DETAILED: Final = "penstock.detailed"
DURATION_MS: Final = "penstock.duration_ms"

BUDGET: Final = "budget"
"""The finish reason of an answer that ended where no more could be held."""

CHAT: Final = gen_ai.GenAiOperationNameValues.CHAT.value
TEXT_COMPLETION: Final = gen_ai.GenAiOperationNameValues.TEXT_COMPLETION.value


def cost(amount_nano_usd: int) -> Attributes:
    """The proposed cost attributes, for an inference span; computed by us: no provider tells it."""
    return {
        COST_AMOUNT: amount_nano_usd / NANO_PER_USD,
        COST_CURRENCY: "USD",
        COST_SOURCE: "local",
    }


def charged(
    *,
    cost_nano_usd: int,
    prompt_tokens: int,
    completion_tokens: int,
    cached_prompt_tokens: int = 0,
    reasoning_tokens: int = 0,
    estimated: bool = False,
) -> Attributes:
    """What an attempt used and was charged; goes on its span when it is settled."""
    found: Attributes = {
        ATTEMPT_COST_NANO_USD: cost_nano_usd,
        INPUT_TOKENS: prompt_tokens,
        OUTPUT_TOKENS: completion_tokens,
        **cost(cost_nano_usd),
    }
    if cached_prompt_tokens:
        found[CACHED_INPUT_TOKENS] = cached_prompt_tokens
    if reasoning_tokens:
        found[REASONING_TOKENS] = reasoning_tokens
    if estimated:
        found[ESTIMATED] = True
    return found
