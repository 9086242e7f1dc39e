"""The ledger's verdicts: which are final, and what they mean to the client. Pure."""

import grpc
from google.protobuf.message import Message

from penstock.core.clock import Clock
from penstock.core.errors import (
    BudgetExceeded,
    CreditExhausted,
    FailedPrecondition,
    PenstockError,
    RateLimited,
)
from penstock.core.status import kind_of
from penstock.quota.v1.quota_pb2 import BudgetRefusal, OperationError, OperationResult

POOL = "pool"
"""`account_kind` of a refusal by a provider's account, that many tenants share."""

REFUSALS = (BudgetExceeded, RateLimited, CreditExhausted)
"""There is too little left: a verdict, although its code says to come again."""

IN_FLIGHT_RETRY_SECONDS = 1.0
"""The ledger only knows when a hold in flight ends at the latest; most end long before."""

_REFUSAL_REASONS = frozenset(kind.default_reason for kind in REFUSALS)

# What leaves open whether the operation was applied, or asks to come again.
_OPEN_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def error_of(error: OperationError, clock: Clock) -> PenstockError:
    """The PenstockError that the quota service meant; a refusal's facts are in its metadata."""
    metadata = dict(error.metadata)
    retry_after_seconds = None
    if error.HasField("refusal"):
        _tell(metadata, error.refusal)
        retry_after_seconds = _resets(metadata, error.refusal, clock)
    elif error.HasField("rate"):
        _tell(metadata, error.rate)
        if error.rate.HasField("retry_after_ms"):
            retry_after_seconds = max(0, error.rate.retry_after_ms) / 1000
            if error.rate.unit == "in_flight":
                retry_after_seconds = min(retry_after_seconds, IN_FLIGHT_RETRY_SECONDS)
    elif error.HasField("credit"):
        _tell(metadata, error.credit)
    return kind_of(_code(error), error.reason)(
        error.message,
        reason=error.reason or None,
        metadata=metadata,
        retry_after_seconds=retry_after_seconds,
    )


def ends_as_budget(refusal: PenstockError) -> bool:
    """Of an extension: no more can be held, and what was held is good. A key that was revoked or an
    account that was suspended meanwhile is another matter, and told as such.
    """
    return isinstance(refusal, (*REFUSALS, FailedPrecondition))


def is_of_caller(refusal: PenstockError) -> bool:
    """A rate limit of the key, its team or its organisation: it holds for every target alike."""
    return isinstance(refusal, RateLimited) and refusal.metadata.get("account_kind") != POOL


def sooner(before: PenstockError | None, refusal: PenstockError) -> PenstockError:
    """What the client is told of two failures: the first; of two limits the one that frees first,
    so that `retry_after_seconds` is true.
    """
    if not (isinstance(before, RateLimited) and isinstance(refusal, RateLimited)):
        return before or refusal
    ends = [e.retry_after_seconds for e in (before, refusal)]
    first, second = (float("inf") if end is None else end for end in ends)
    return before if first <= second else refusal


def is_open(result: OperationResult) -> bool:
    """Whether the ledger gave no verdict: the operation may have been applied, or may yet be."""
    if result.WhichOneof("result") != "error":
        return False
    return result.error.reason not in _REFUSAL_REASONS and _code(result.error) in _OPEN_CODES


def _tell(metadata: dict[str, str], refusal: Message) -> None:
    for field in refusal.DESCRIPTOR.fields:
        if field.message_type is None and (not field.has_presence or refusal.HasField(field.name)):
            metadata.setdefault(field.name, str(getattr(refusal, field.name)))


def _resets(metadata: dict[str, str], refusal: BudgetRefusal, clock: Clock) -> float | None:
    if not refusal.HasField("resets_at"):
        metadata["resets_at"] = "never"
        return None
    metadata.setdefault("resets_at", refusal.resets_at.ToJsonString())
    return max(0.0, refusal.resets_at.ToMilliseconds() / 1000 - clock.unix_seconds())


def _code(error: OperationError) -> grpc.StatusCode:
    return _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
