"""Our own replicas, dialled directly.

A replica that is full is not asked again: another one is, once, and then a place is waited for,
where the plan says so. A replica that fails before its first delta is told to its breaker, and
another one is asked, once. After the first delta nothing is tried again: the client has it.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc

from penstock.core import channel, errors
from penstock.core.clock import Clock
from penstock.local.v1 import local_pb2
from penstock.router.backends.base import (
    AttemptFailed,
    Billing,
    Call,
    Chunk,
    deadline_passed,
)
from penstock.router.backends.local_errors import ENGINE_DEAD, error_of
from penstock.router.pools import Lease, Pools
from penstock.router.replica import Replica

TRIES_MAX = 2
"""Replicas asked without waiting: the second sees whether the first was the only one at fault."""

RETRY_AFTER_SECONDS_MIN = 0.1
"""Told with a full pool: a client that comes back sooner finds the same requests there."""

RETRY_AFTER_SECONDS_NO_REPLICA = 2.0
"""Told with a pool that has no replica: about what the fastest engine takes to start."""


@dataclass(slots=True)
class _Try:
    """What one request went through so far."""

    wait_until: float
    asked: list[Replica] = field(default_factory=list)
    has_delivered: bool = False
    """A delta was handed out: from here nothing is tried again."""
    error: errors.PenstockError | None = None
    """Of the last replica that failed; full ones leave none."""


class _Full(Exception):
    """RESOURCE_EXHAUSTED: nothing began there."""


class _Failed(Exception):
    """The replica failed before its first delta."""

    def __init__(self, error: errors.PenstockError) -> None:
        super().__init__(error.message)
        self.error = error


class LocalBackend:
    """See `base.Backend`. `token` is the router's, demanded by every replica."""

    def __init__(self, *, pools: Pools, token: str, clock: Clock) -> None:
        self._pools = pools
        self._authorization = channel.bearer(token)
        self._clock = clock

    async def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        tried = _Try(self._clock.monotonic_seconds() + call.wait_seconds_max)
        while True:
            lease = await self._place(call, tried)
            tried.asked.append(lease.replica)
            refused = False
            try:
                async with aclosing(self._stream(lease, call, tried)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except _Full:
                refused = True
            except _Failed as failed:
                tried.error = failed.error
            finally:
                lease.release(refused=refused)

    async def _place(self, call: Call, tried: _Try) -> Lease:
        """A place in a replica that was not asked yet, or, if it may be waited for, in any.

        Raises:
            AttemptFailed: there is none.
        """
        if call.deadline.remaining_seconds() <= 0:
            raise deadline_passed(Billing.NOTHING)
        choices = max(1, call.input.n)
        if len(tried.asked) < TRIES_MAX:
            lease = self._pools.take(call.model, choices, besides=tried.asked)
            if lease is not None:
                return lease
        # Whoever failed is not waited for: a pool that breaks is for the next target of the plan.
        if tried.error is not None:
            raise AttemptFailed(tried.error, billing=Billing.NOTHING, fall_back=True)
        left = min(
            tried.wait_until - self._clock.monotonic_seconds(), call.deadline.remaining_seconds()
        )
        lease = await self._pools.wait(call.model, choices, seconds=left) if left > 0 else None
        if lease is None:
            raise AttemptFailed(self._exhausted(call), billing=Billing.NOTHING, fall_back=True)
        return lease

    def _exhausted(self, call: Call) -> errors.CapacityExhausted:
        if not self._pools.has_replica(call.model):
            return errors.CapacityExhausted(
                f"no replica of local/{call.model} is running; try again later",
                reason="NO_REPLICA",
                metadata={"model": call.model},
                retry_after_seconds=RETRY_AFTER_SECONDS_NO_REPLICA,
            )
        wait_seconds = self._pools.view(call.model).expected_wait_ms / 1000
        return errors.CapacityExhausted(
            f"all replicas of local/{call.model} are full; try again later",
            metadata={"model": call.model},
            retry_after_seconds=max(RETRY_AFTER_SECONDS_MIN, wait_seconds),
        )

    async def _stream(self, lease: Lease, call: Call, tried: _Try) -> AsyncGenerator[Chunk, None]:
        rpc = lease.replica.stub.Generate(
            local_pb2.GenerateRequest(request_id=call.request_id, input=call.input),
            timeout=call.deadline.remaining_seconds(),
            metadata=self._metadata(lease.replica, call),
        )
        try:
            while isinstance(message := await rpc.read(), local_pb2.GenerateResponse):
                lease.permit.progressed()
                tried.has_delivered = tried.has_delivered or len(message.deltas) > 0
                if message.HasField("load"):
                    lease.replica.report(message.load)
                yield _chunk(message)
            lease.permit.succeeded()
        except grpc.aio.AioRpcError as failure:
            raise _judge(failure.code(), error_of(failure), lease, tried) from failure
        finally:
            # Reached by closing and by cancellation too: the replica stops at once.
            rpc.cancel()

    def _metadata(self, replica: Replica, call: Call) -> tuple[tuple[str, str], ...]:
        metadata = (("application", replica.application), self._authorization)
        return (*metadata, ("traceparent", call.traceparent)) if call.traceparent else metadata


def _chunk(message: local_pb2.GenerateResponse) -> Chunk:
    return Chunk(
        deltas=message.deltas,
        usage=message.usage if message.HasField("usage") else None,
        prompt_tokens=message.prompt_tokens,
        completion_tokens_so_far=message.completion_tokens_so_far,
    )


def _judge(
    code: grpc.StatusCode, error: errors.PenstockError, lease: Lease, tried: _Try
) -> Exception:
    """What the failure means: to the breaker (told here), and to the request (returned)."""
    permit = lease.permit
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        # No verdict: a short deadline says nothing of the replica.
        return deadline_passed(Billing.UNKNOWN if tried.has_delivered else Billing.NOTHING)
    if code is grpc.StatusCode.INVALID_ARGUMENT and not tried.has_delivered:
        permit.succeeded()
        # A longer context elsewhere may take what is too long here; other faults stay faults.
        is_too_long = error.reason == "CONTEXT_LENGTH_EXCEEDED"
        return AttemptFailed(error, billing=Billing.NOTHING, fall_back=is_too_long)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not tried.has_delivered:
        permit.succeeded()
        return _Full()
    permit.failed()
    if error.reason == ENGINE_DEAD:
        lease.replica.eject()
    if not tried.has_delivered:
        return _Failed(error)
    broken = errors.StreamBroken(
        "the replica failed in mid-stream; what was made is charged",
        metadata={"cause": error.reason},
    )
    return AttemptFailed(broken, billing=Billing.UNKNOWN, fall_back=True)
