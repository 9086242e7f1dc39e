"""What the flow records of a request: attributes of its span and of its attempts' spans."""

from collections.abc import Sequence

from penstock.core import semconv, telemetry_content
from penstock.core.semconv import Attributes
from penstock.router.estimate import Used
from penstock.router.policy import Attempt
from penstock.router.receipt import OK, Tally
from penstock.router.request import Request
from penstock.router.v1.router_pb2 import CacheVerdict, Receipt
from penstock.type.v1.chat_pb2 import Choice


def of_request(request: Request, *, record_prompts: bool) -> Attributes:
    chat = request.input
    raw = chat.HasField("prompt")
    found: Attributes = {
        semconv.OPERATION: semconv.TEXT_COMPLETION if raw else semconv.CHAT,
        semconv.REQUEST_MODEL: request.model,
        semconv.REQUEST_ID: request.request_id,
        semconv.ORGANISATION: request.principal.org_id,
        semconv.TEAM: request.principal.team_id,
        semconv.KEY_ID: request.principal.key_id,
        semconv.REQUEST_CHOICES: request.choices,
    }
    if request.client_request_id:
        found[semconv.CLIENT_REQUEST_ID] = request.client_request_id
    if chat.HasField("temperature"):
        found[semconv.REQUEST_TEMPERATURE] = chat.temperature
    if chat.HasField("top_p"):
        found[semconv.REQUEST_TOP_P] = chat.top_p
    return found | telemetry_content.prompt(chat, record_prompts=record_prompts)


def of_attempt(attempt: Attempt, index: int, held_nano_usd: int) -> Attributes:
    return {
        semconv.PROVIDER: attempt.label,
        semconv.RESPONSE_MODEL: attempt.model,
        semconv.REASON: attempt.reason,
        semconv.REQUEST_MAX_TOKENS: attempt.max_tokens,
        semconv.HELD_NANO_USD: held_nano_usd,
        semconv.ATTEMPT_INDEX: index,
    }


def of_use(used: Used, reservation_id: str, held_nano_usd: int) -> Attributes:
    usage = used.usage
    return {
        semconv.RESERVATION_ID: reservation_id,
        semconv.HELD_NANO_USD: held_nano_usd,
        **semconv.charged(
            cost_nano_usd=used.amount_nano_usd,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            estimated=usage.estimated,
        ),
    }


def of_receipt(receipt: Receipt) -> Attributes:
    # An attempt that was answered and yet refused more was cut where no more could be held.
    is_cut = bool(receipt.attempts) and receipt.attempts[-1].outcome != OK
    ended: Attributes = {semconv.FINISH_REASONS: (semconv.BUDGET,)} if is_cut else {}
    return ended | {
        semconv.PROVIDER: receipt.provider,
        semconv.RESPONSE_MODEL: receipt.model,
        semconv.REASON: receipt.reason,
        semconv.CACHE: verdict_name(receipt.cache),
        semconv.COST_NANO_USD: receipt.cost_nano_usd,
        semconv.BASELINE_COST_NANO_USD: receipt.baseline_cost_nano_usd,
        semconv.SAVED_NANO_USD: receipt.saved_nano_usd,
        semconv.SETTLED: receipt.settled,
        semconv.ATTEMPTS: len(receipt.attempts),
    }


def of_answer(choices: Sequence[Choice], *, record_prompts: bool) -> Attributes:
    return telemetry_content.answer(choices, record_prompts=record_prompts)


def of_failure(tally: Tally) -> Attributes:
    return {
        semconv.CACHE: verdict_name(tally.cache),
        semconv.COST_NANO_USD: tally.cost_nano_usd,
        semconv.SETTLED: tally.settled,
        semconv.ATTEMPTS: len(tally.outcomes),
    }


def verdict_name(verdict: CacheVerdict.ValueType) -> str:
    """One of "hit", "miss", "shared", "bypass" or "unavailable": in headers, JSON and spans
    alike.
    """
    return CacheVerdict.Name(verdict).removeprefix("CACHE_VERDICT_").lower()
