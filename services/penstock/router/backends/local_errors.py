"""A replica's gRPC errors as ours. Its text is `REASON: message`, since Ray may drop trailers."""

import re

import grpc

from penstock.core import errors
from penstock.core.status import from_rpc_error

ENGINE_DEAD = "ENGINE_DEAD"
"""The replica's own word that it will not answer again."""

_REASONED = re.compile(r"([A-Z][A-Z0-9_]{2,63}): (.*)", re.DOTALL)
_FIELD = re.compile(r"(input(?:\.\w+(?:\[\d+\])?)+): (.*)", re.DOTALL)


def error_of(failure: grpc.aio.AioRpcError) -> errors.PenstockError:
    """What a replica meant: an InvalidRequest, a CapacityExhausted, else an UpstreamFailed."""
    told = from_rpc_error(failure)
    reason, message = told.reason, told.message
    if match := _REASONED.fullmatch(message):
        reason, message = match[1], match[2]
    if failure.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return _invalid(reason, message, told)
    if failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.CapacityExhausted(
            message, metadata=told.metadata, retry_after_seconds=told.retry_after_seconds
        )
    # Its address, its token, its stack are no business of the caller: the code says enough.
    code = failure.code()
    return errors.UpstreamFailed(
        f"the local replica failed ({code.name}); try again",
        reason=ENGINE_DEAD if reason == ENGINE_DEAD else None,
        metadata={"provider": "local", "code": code.name},
    )


def _invalid(reason: str, message: str, told: errors.PenstockError) -> errors.InvalidRequest:
    violations = list(told.violations)
    if not violations and (match := _FIELD.match(message)):
        violations = [errors.FieldViolation(match[1], match[2])]
    return errors.InvalidRequest(
        message, reason=reason, metadata=told.metadata, violations=violations
    )
