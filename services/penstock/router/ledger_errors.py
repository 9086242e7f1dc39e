"""The ledger's verdicts: which are final, and what they mean to the client. Pure."""

from datetime import datetime

import grpc
from google.protobuf.message import Message

from penstock.core.clock import Clock
from penstock.core.errors import (
    BudgetExceeded,
    CreditExhausted,
    FailedPrecondition,
    PenstockError,
    RateLimited,
    Unavailable,
)
from penstock.core.status import from_rpc_error, kind_of
from penstock.quota.v1.quota_pb2 import OperationError, OperationResult

NEVER = "never"
"""`resets_at` of a total."""

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

# Of a router and a quota service that do not know each other, or not yet.
_OF_THE_CALL = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED})

# Of the key that reserves, and not of the router that asks for it.
_OF_THE_KEY = frozenset({"KEY_REVOKED", "KEY_EXPIRED"})

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def error_of(error: OperationError, clock: Clock) -> PenstockError:
    """The PenstockError that the quota service meant; a refusal's facts are in its metadata."""
    metadata = dict(error.metadata)
    retry_after_seconds = None
    if error.HasField("refusal"):
        _tell(metadata, error.refusal)
        if error.refusal.HasField("resets_at"):
            metadata.setdefault("resets_at", error.refusal.resets_at.ToJsonString())
    elif error.HasField("rate"):
        _tell(metadata, error.rate)
        if error.rate.HasField("retry_after_ms"):
            retry_after_seconds = max(0, error.rate.retry_after_ms) / 1000
    elif error.HasField("credit"):
        _tell(metadata, error.credit)
    return _timed(
        kind_of(_code(error), error.reason)(
            error.message,
            reason=error.reason or None,
            metadata=metadata,
            retry_after_seconds=retry_after_seconds,
        ),
        clock,
    )


def error_of_preview(error: grpc.aio.AioRpcError, clock: Clock) -> PenstockError:
    """The verdict on a preview, as `error_of` tells it; else Unavailable: there is none."""
    told = from_rpc_error(error)
    is_verdict = isinstance(told, REFUSALS) or told.reason in _OF_THE_KEY
    if is_verdict or error.code() not in _OPEN_CODES | _OF_THE_CALL:
        return _timed(told, clock)
    return Unavailable(f"the ledger did not say ({told.message})", reason="LEDGER_UNAVAILABLE")


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


def _timed(error: PenstockError, clock: Clock) -> PenstockError:
    """With the time after which the client may come again."""
    after = error.retry_after_seconds
    if isinstance(error, BudgetExceeded):
        resets_at = error.metadata.setdefault("resets_at", NEVER)
        if resets_at != NEVER:
            after = datetime.fromisoformat(resets_at).timestamp() - clock.unix_seconds()
            error.retry_after_seconds = max(0.0, after)
    elif after is not None and error.metadata.get("unit") == "in_flight":
        error.retry_after_seconds = min(after, IN_FLIGHT_RETRY_SECONDS)
    return error


def _code(error: OperationError) -> grpc.StatusCode:
    return _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
