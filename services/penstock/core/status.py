"""Errors on the wire: PenstockError to google.rpc.Status and back."""

import logging
import re

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from penstock.core import errors

logger = logging.getLogger(__name__)

_TOO_LARGE = re.compile(
    r"(?:SERVER: Received|CLIENT: Sent) message larger than max \((\d+) vs\. (\d+)\)"
)
"""gRPC's own words for a request that it does not carry, under a code that says to come again."""

_BY_REASON: dict[str, type[errors.PenstockError]] = {}
_BY_CODE: dict[grpc.StatusCode, type[errors.PenstockError]] = {}


def _index() -> None:
    for kind in errors.PenstockError.__subclasses__():
        _BY_REASON[kind.default_reason] = kind
        _BY_CODE.setdefault(kind.code, kind)


_index()


def told(error: BaseException) -> errors.PenstockError:
    """What the caller is told; an unexpected error is logged, and its text kept to ourselves."""
    if isinstance(error, errors.PenstockError):
        return error
    logger.error("unexpected error", exc_info=error)
    return errors.Internal(f"unexpected {type(error).__name__}; see the service's log")


def to_status(error: errors.PenstockError) -> status_pb2.Status:
    """google.rpc.Status with ErrorInfo, and BadRequest / RetryInfo where they apply."""
    details = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=errors.DOMAIN, metadata=error.metadata
        )
    ]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=v.field, description=v.description
                    )
                    for v in error.violations
                ]
            )
        )
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(max(0, round(error.retry_after_seconds * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        holder = any_pb2.Any()
        holder.Pack(detail)
        packed.append(holder)
    code = code_pb2.Code.Value(error.code.name)
    return status_pb2.Status(code=code, message=error.message, details=packed)


def from_rpc_error(error: grpc.aio.AioRpcError) -> errors.PenstockError:
    """The PenstockError that a peer meant; an unknown peer's error by its code alone."""
    message = error.details() or error.code().name
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and (match := _TOO_LARGE.search(message)):
        return errors.InvalidRequest(
            f"the request is {match[1]} bytes long; at most {match[2]} are carried. Send less.",
            reason="REQUEST_TOO_LARGE",
            metadata={"limit_bytes": match[2]},
        )
    reason, metadata, violations, retry_after = None, {}, [], None
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what a Call has
    for detail in status.details if status else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = [
                errors.FieldViolation(v.field, v.description) for v in bad.field_violations
            ]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return kind_of(error.code(), reason)(
        message,
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_after_seconds=retry_after,
    )


def kind_of(code: grpc.StatusCode, reason: str | None = None) -> type[errors.PenstockError]:
    """The class for a reason, else for a code. An error with reason BUDGET_EXCEEDED is a
    BudgetExceeded.
    """
    if reason in _BY_REASON and _BY_REASON[reason].code == code:
        return _BY_REASON[reason]
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.CapacityExhausted
    return _BY_CODE.get(code, errors.Internal)
