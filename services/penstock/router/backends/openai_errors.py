"""What a provider's failure means: to the request, and to the provider's breaker. Pure.

| the provider | the client is told | billed | another target | breaker |
|---|---|---|---|---|
| 400, 413, 422 | InvalidRequest, in its own words | no | no (context too long: yes) | fine |
| 401, 403 | PROVIDER_CREDENTIALS_INVALID | no | yes | failed |
| 404, or no such model | UPSTREAM_MODEL_MISSING | no | yes | fine |
| 429 | UpstreamRateLimited, with its Retry-After | no | yes | pause, else failed |
| 429 insufficient_quota | PROVIDER_QUOTA_EXHAUSTED | no | yes | long pause |
| 408, 502, 504, 52x | UpstreamFailed | unknown | yes | failed |
| other 5xx | UpstreamFailed | no | yes | failed, or its Retry-After |
| not reached | UpstreamFailed, UPSTREAM_UNREACHABLE | no | yes | failed |
| silent, broken, garbled | UpstreamFailed; after a delta StreamBroken | unknown | yes | failed |
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import openai

from penstock.core import errors
from penstock.router.backends.base import AttemptFailed, Billing
from penstock.router.breaker import PAUSE_SECONDS_MAX
from penstock.type.v1.chat_pb2 import ChatInput

QUOTA_PAUSE_SECONDS = 60.0
"""After "the account has no credit left": somebody has to pay, which takes minutes at least."""

MESSAGE_CHARACTERS_MAX = 500
"""Of a provider's text that is handed on; some quote the whole request."""

BAD_REQUEST_STATUSES = frozenset({400, 413, 422})
CREDENTIAL_STATUSES = frozenset({401, 403})
GATEWAY_STATUSES = frozenset({408, 502, 504, 520, 521, 522, 523, 524})
"""From something between us and the model: the model may have begun all the same."""

_NOT_REACHED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_MODEL_MISSING = frozenset({"model_not_found", "model_not_available", "invalid_model"})
_TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_OTHER_NAMES = {"max_completion_tokens": "max_tokens"}
"""Of parameters that are not called as our fields."""

_SECRET = re.compile(r"\b(?:sk|pk|rk|key)-[\w*.-]{4,}", re.ASCII)


class MalformedAnswer(Exception):
    """Not what the API's contract says: another content type, no JSON, a wrong shape."""


class Silent(Exception):
    """Nothing came for too long."""


class Cut(Exception):
    """The stream ended before the answer did."""


@dataclass(frozen=True, slots=True)
class Verdict:
    failed: AttemptFailed
    trips: bool = False
    """Counts as a failure of the provider."""
    pause_seconds: float | None = None
    """It is to be left alone for so long."""


def judge(
    failure: Exception, *, label: str, chat: ChatInput, has_delivered: bool, now_unix_seconds: float
) -> Verdict:
    """What `failure` means.

    Args:
        failure: What the call raised.
        label: The provider.
        chat: What was asked of it.
        has_delivered: The client may already have a part of the answer.
        now_unix_seconds: For a Retry-After that is a date.
    """
    if isinstance(failure, openai.APIStatusError):
        return _of_status(failure, label, chat, now_unix_seconds)
    if isinstance(failure, openai.APIConnectionError) and isinstance(
        failure.__cause__, _NOT_REACHED
    ):
        error = errors.UpstreamFailed(
            f"{label} cannot be reached; try again",
            reason="UPSTREAM_UNREACHABLE",
            metadata={"provider": label},
        )
        return Verdict(_attempt(error, Billing.NOTHING), trips=True)
    if type(failure) is openai.APIError and not has_delivered and _is_request_fault(failure):
        return _invalid(failure.body, label, chat)
    return _broken(failure, label, has_delivered=has_delivered)


def _attempt(
    error: errors.PenstockError, billing: Billing, *, fall_back: bool = True
) -> AttemptFailed:
    return AttemptFailed(error, billing=billing, fall_back=fall_back)


def _of_status(
    failure: openai.APIStatusError, label: str, chat: ChatInput, now_unix_seconds: float
) -> Verdict:
    status, words = failure.status_code, _words(failure.body)
    wait = retry_after_seconds(failure.response.headers, now_unix_seconds)
    facts = {"provider": label, "upstream_status": str(status)}
    if status == httpx2.codes.NOT_FOUND or words & _MODEL_MISSING:
        missing = errors.FailedPrecondition(
            f"{label} does not have this model, or not at this address; "
            "see the provider's base_url and upstream_name in penstock.yaml",
            reason="UPSTREAM_MODEL_MISSING",
            metadata=facts,
        )
        return Verdict(_attempt(missing, Billing.NOTHING))
    if status in BAD_REQUEST_STATUSES:
        return _invalid(failure.body, label, chat)
    if status in CREDENTIAL_STATUSES:
        refused = errors.FailedPrecondition(
            f"{label} refuses the credentials that this router is configured with; "
            "its operator has to mend them",
            reason="PROVIDER_CREDENTIALS_INVALID",
            metadata=facts,
        )
        return Verdict(_attempt(refused, Billing.NOTHING), trips=True)
    if status == httpx2.codes.TOO_MANY_REQUESTS:
        return _rate_limited(words, label, facts, wait)
    failed = errors.UpstreamFailed(
        f"{label} failed with HTTP {status}; try again", metadata=facts, retry_after_seconds=wait
    )
    billing = Billing.UNKNOWN if status in GATEWAY_STATUSES else Billing.NOTHING
    return Verdict(_attempt(failed, billing), trips=True, pause_seconds=wait)


def _rate_limited(
    words: frozenset[str], label: str, facts: dict[str, str], wait: float | None
) -> Verdict:
    if words & _NO_CREDIT:
        wait = max(wait or 0.0, QUOTA_PAUSE_SECONDS)
        error = errors.UpstreamRateLimited(
            f"the account at {label} has no credit left; its operator has to add some",
            reason="PROVIDER_QUOTA_EXHAUSTED",
            metadata=facts,
            retry_after_seconds=wait,
        )
    else:
        error = errors.UpstreamRateLimited(
            f"{label} limits the rate of requests; try again later",
            metadata=facts,
            retry_after_seconds=wait,
        )
    return Verdict(_attempt(error, Billing.NOTHING), trips=wait is None, pause_seconds=wait)


def _invalid(body: object, label: str, chat: ChatInput) -> Verdict:
    is_too_long = bool(_words(body) & _TOO_LONG)
    text = f"{label} refuses the request: {_text(body)}"
    field = _prompt_of(chat) if is_too_long else _field_at_fault(body)
    error = errors.InvalidRequest(
        f"{field}: {text}" if field else text,
        reason="CONTEXT_LENGTH_EXCEEDED" if is_too_long else None,
        metadata={"provider": label},
        violations=[errors.FieldViolation(field, text)] if field else (),
    )
    # What is too long here may fit elsewhere; any other fault is the request's own.
    return Verdict(_attempt(error, Billing.NOTHING, fall_back=is_too_long))


def _prompt_of(chat: ChatInput) -> str:
    return "input.prompt" if chat.HasField("prompt") else "input.messages"


def _field_at_fault(body: object) -> str | None:
    """The provider's `param` as the proto's path; None: it names none that we know.

    The details behind a dot or bracket are left out: they have other names here.
    """
    name = re.split(r"[.\[]", str(_fields(body).get("param") or ""), maxsplit=1)[0]
    name = _OTHER_NAMES.get(name, name)
    return f"input.{name}" if name in ChatInput.DESCRIPTOR.fields_by_name else None


def _broken(failure: Exception, label: str, *, has_delivered: bool) -> Verdict:
    reason, told = "UPSTREAM_BROKEN", "broke the connection"
    if isinstance(failure, MalformedAnswer):
        reason, told = "UPSTREAM_MALFORMED", f"sent what is no answer: {failure}"
    elif isinstance(failure, Silent | openai.APITimeoutError):
        reason, told = "UPSTREAM_TIMEOUT", "was silent for too long"
    elif isinstance(failure, Cut):
        told = "ended the stream before the answer was complete"
    elif not isinstance(failure, openai.APIConnectionError):
        reason, told = "UPSTREAM_FAILED", "reported an error"
    facts = {"provider": label, "cause": reason}
    if has_delivered:
        broken = errors.StreamBroken(
            f"{label} {told} in mid-stream; what was made is charged", metadata=facts
        )
        return Verdict(_attempt(broken, Billing.UNKNOWN), trips=True)
    failed = errors.UpstreamFailed(f"{label} {told}; try again", reason=reason, metadata=facts)
    return Verdict(_attempt(failed, Billing.UNKNOWN), trips=True)


def _fields(body: object) -> Mapping[str, Any]:
    """The error object, whether the SDK unwrapped it or not."""
    if not isinstance(body, Mapping):
        return {}
    inner = body.get("error")
    return inner if isinstance(inner, Mapping) else body


def _words(body: object) -> frozenset[str]:
    fields = _fields(body)
    return frozenset(str(fields[k]) for k in ("code", "type") if fields.get(k) is not None)


def _is_request_fault(failure: openai.APIError) -> bool:
    words = _words(failure.body)
    return bool(words & (_TOO_LONG | {"400", "invalid_request_error"}))


def _text(body: object) -> str:
    """The provider's own words, without anything that looks like a key."""
    message = str(_fields(body).get("message") or "no reason is given")
    return _SECRET.sub("[key]", message)[:MESSAGE_CHARACTERS_MAX]


def retry_after_seconds(headers: Mapping[str, str], now_unix_seconds: float) -> float | None:
    """`retry-after-ms`, or `Retry-After` in seconds or as an HTTP date; None: absent or absurd.

    Never more than the breaker's longest pause: after it the provider is asked again all the same.
    """
    seconds = _asked_seconds(headers, now_unix_seconds)
    return seconds if seconds is None else min(seconds, PAUSE_SECONDS_MAX)


def _asked_seconds(headers: Mapping[str, str], now_unix_seconds: float) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_unix_seconds)
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
