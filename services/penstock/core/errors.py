"""The errors of Penstock: each owns one gRPC code, one HTTP status and one UPPER_SNAKE reason.

PenstockError
├── InvalidRequest        INVALID_ARGUMENT   400  mend the named field
├── Unauthenticated       UNAUTHENTICATED    401  send a valid key
├── PermissionDenied      PERMISSION_DENIED  403  ask for a key that may
├── NotFound              NOT_FOUND          404  name something that exists
├── Conflict              ALREADY_EXISTS     409  the id or name is taken by something else
├── FailedPrecondition    FAILED_PRECONDITION 400 configuration or state forbids it; do not retry
├── BudgetExceeded        RESOURCE_EXHAUSTED 429  wait for the reset, or raise the budget
├── RateLimited           RESOURCE_EXHAUSTED 429  a limit of a key or a provider; after that time
├── CreditExhausted       RESOURCE_EXHAUSTED 429  prepaid credit is used up; grant more
├── CapacityExhausted     RESOURCE_EXHAUSTED 429  again after `retry_after_seconds`
├── UpstreamRateLimited   RESOURCE_EXHAUSTED 429  the provider's limit; again after that time
├── DeadlineExceeded      DEADLINE_EXCEEDED  504  give more time
├── Cancelled             CANCELLED          499  the client went away
├── Unavailable           UNAVAILABLE        503  a part is down; retry with back-off
├── UpstreamFailed        UNAVAILABLE        502  the upstream failed; retry
├── StreamBroken          ABORTED            502  broke after the first byte; what came counts
└── Internal              INTERNAL           500  our fault; report it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc

DOMAIN = "penstock"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A fault of one field: its path, and what is wrong with it, its limit and the remedy."""

    field: str
    description: str


class PenstockError(Exception):
    """Base of all: what went wrong, told to the caller as it is. Never holds a secret.

    Attributes:
        message: One or two sentences that name the field or part, the limit and the remedy.
        reason: UPPER_SNAKE, stable; what programs branch on.
        metadata: More facts, as text by name (ErrorInfo.metadata).
        violations: Faulty fields, for `BadRequest`.
        retry_after_seconds: When a retry makes sense; None: unknown or never.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds

    @property
    def cost_nano_usd(self) -> int:
        """What the request was charged before it failed: made again, it is paid again."""
        told = self.metadata.get("cost_nano_usd", "")
        return int(told) if told.isdecimal() else 0


class InvalidRequest(PenstockError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    default_reason = "INVALID_REQUEST"

    @classmethod
    def of(
        cls,
        violations: Sequence[FieldViolation],
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> "InvalidRequest":
        """One error for all faults of a request."""
        text = "; ".join(f"{v.field}: {v.description}" for v in violations)
        return cls(text, reason=reason, metadata=metadata, violations=violations)


class Unauthenticated(PenstockError):
    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    default_reason = "KEY_UNKNOWN"


class PermissionDenied(PenstockError):
    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    default_reason = "PERMISSION_DENIED"


class NotFound(PenstockError):
    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    default_reason = "NOT_FOUND"


class Conflict(PenstockError):
    code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(PenstockError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 400
    default_reason = "FAILED_PRECONDITION"


class BudgetExceeded(PenstockError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    default_reason = "BUDGET_EXCEEDED"


class RateLimited(PenstockError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    default_reason = "RATE_LIMITED"


class CreditExhausted(PenstockError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    default_reason = "CREDIT_EXHAUSTED"


class CapacityExhausted(PenstockError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    default_reason = "CAPACITY_EXHAUSTED"


class UpstreamRateLimited(PenstockError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    default_reason = "UPSTREAM_RATE_LIMITED"


class DeadlineExceeded(PenstockError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(PenstockError):
    code = grpc.StatusCode.CANCELLED
    http_status = 499
    default_reason = "CANCELLED"


class Unavailable(PenstockError):
    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    default_reason = "UNAVAILABLE"


class UpstreamFailed(PenstockError):
    code = grpc.StatusCode.UNAVAILABLE
    http_status = 502
    default_reason = "UPSTREAM_FAILED"


class StreamBroken(PenstockError):
    code = grpc.StatusCode.ABORTED
    http_status = 502
    default_reason = "STREAM_BROKEN"


class Internal(PenstockError):
    pass
