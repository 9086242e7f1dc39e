"""PenstockError in OpenAI's shape: status, headers, `{"error": {message, type, param, code}}`."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response

from penstock.core import errors
from penstock.core.errors import FieldViolation, InvalidRequest, PenstockError
from penstock.router.front import error_headers

_encode = msgspec.json.Encoder().encode

STATUS_OF_REASON = {
    "REQUEST_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "METHOD_NOT_ALLOWED": 405,
    "BODY_TIMEOUT": 408,
}
"""Where HTTP tells apart what gRPC does not."""

CODE_OF_REASON = {
    "KEY_MISSING": "invalid_api_key",
    "KEY_UNKNOWN": "invalid_api_key",
    "KEY_REVOKED": "invalid_api_key",
    "KEY_EXPIRED": "invalid_api_key",
    "BUDGET_EXCEEDED": "insufficient_quota",
    "CREDIT_EXHAUSTED": "insufficient_quota",
    "RATE_LIMITED": "rate_limit_exceeded",
    "CAPACITY_EXHAUSTED": "rate_limit_exceeded",
    "UPSTREAM_RATE_LIMITED": "rate_limit_exceeded",
}
"""OpenAI's own codes, on which existing clients branch; any other is our reason in lower case."""

NO_RETRY = (
    errors.BudgetExceeded,
    errors.CreditExhausted,
    errors.DeadlineExceeded,
    errors.Conflict,
    errors.StreamBroken,
)
"""Asked again they fail again, or what was delivered is paid twice."""


def renamed(error: InvalidRequest, rename: Callable[[str], str]) -> InvalidRequest:
    """The same faults; `rename`: from the proto's path of a field to OpenAI's name."""
    if not error.violations:
        return error
    told = [FieldViolation(rename(v.field), v.description) for v in error.violations]
    return InvalidRequest.of(told, reason=error.reason, metadata=error.metadata)


def status_of(error: PenstockError) -> int:
    return STATUS_OF_REASON.get(error.reason, error.http_status)


def body_of(error: PenstockError, request_id: str) -> dict[str, Any]:
    """The error as clients of OpenAI read it, and beside it our own words for programs."""
    return {
        "error": {
            "message": error.message,
            "type": _type_of(error),
            "param": error.violations[0].field if error.violations else _param_of(error),
            "code": CODE_OF_REASON.get(error.reason, error.reason.lower()),
        },
        "penstock": {
            "request_id": request_id,
            "reason": error.reason,
            "metadata": error.metadata,
            "violations": [
                {"field": v.field, "description": v.description} for v in error.violations
            ],
        },
    }


def response_of(
    error: PenstockError, request_id: str, extra: dict[str, str] | None = None
) -> Response:
    headers = {
        **error_headers(error, request_id),
        "x-request-id": request_id,
        "content-type": "application/json",
        **(extra or {}),
    }
    if error.retry_after_seconds is not None:
        seconds = max(0.0, error.retry_after_seconds)
        headers["retry-after"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
    if isinstance(error, NO_RETRY) or error.cost_nano_usd > 0 or _can_never_succeed(error):
        # OpenAI's SDKs retry 409, 429 and 5xx by themselves.
        headers["x-should-retry"] = "false"
    if isinstance(error, errors.Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return Response(_encode(body_of(error, request_id)), status_of(error), headers)


def _can_never_succeed(error: PenstockError) -> bool:
    """It asks for more than a rate limit allows at all."""
    return isinstance(error, errors.RateLimited) and error.retry_after_seconds is None


def _type_of(error: PenstockError) -> str:
    if isinstance(error, errors.BudgetExceeded | errors.CreditExhausted):
        return "insufficient_quota"
    status = status_of(error)
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 499 else "server_error"


def _param_of(error: PenstockError) -> str | None:
    return "model" if error.reason.startswith("MODEL_") else None
