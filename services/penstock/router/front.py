"""What both fronts share: from headers and a message to a request under way, and back."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from penstock.core import ids
from penstock.core.catalogue import Catalogue
from penstock.core.clock import Clock
from penstock.core.deadline import Deadline
from penstock.core.errors import PenstockError
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.events import Event
from penstock.router.principal import Principals
from penstock.router.request import Request
from penstock.router.running import Registry, Running
from penstock.router.tracing import verdict_name
from penstock.router.v1.router_pb2 import (
    DATA_CLASS_LOCAL_ONLY,
    ExplainRouteResponse,
    GenerateRequest,
    Model,
    Receipt,
)
from penstock.router.validation import checked_deadline, validate
from penstock.type.v1.chat_pb2 import Usage

PREFIX = "x-penstock-"

Run = Callable[[Request], AsyncGenerator[Event, None]]
Explain = Callable[[Request], Awaitable[ExplainRouteResponse]]
ListModels = Callable[[Principal], Sequence[Model]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a front read from the wire.

    Attributes:
        message: The request.
        arrived_at: When its call came, in seconds on the monotonic clock: its deadline begins
            there, whatever the key's look-up and the body took since.
        timeout_seconds: The client's deadline; None: it named none.
        deadline_field: What the client calls the deadline.
        stream: It wants the answer as it is made.
        traceparent: Of the caller's trace, or empty.
    """

    message: GenerateRequest
    arrived_at: float
    timeout_seconds: float | None
    deadline_field: str
    stream: bool = False
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Front:
    principals: Principals
    catalogue: Callable[[], Catalogue]
    registry: Registry
    run: Run
    explain: Explain
    models: ListModels
    clock: Clock
    new_request_id: Callable[[], str] = ids.request_id

    def request(self, asked: Asked, principal: Principal, request_id: str) -> Request:
        """A request that may be planned.

        Raises:
            InvalidRequest, NotFound, PermissionDenied: see `validation`.
        """
        catalogue = self.catalogue()
        message = asked.message
        seconds = checked_deadline(asked.timeout_seconds, catalogue.limits, asked.deadline_field)
        validate(message, catalogue, principal)
        return Request(
            request_id=request_id,
            principal=principal,
            model=message.model,
            input=message.input,
            deadline=Deadline(asked.arrived_at + seconds, self.clock),
            local_only=principal.local_only or message.data_class == DATA_CLASS_LOCAL_ONLY,
            stream=asked.stream,
            cache_control=message.cache_control,
            user=message.user,
            tags=message.metadata,
            client_request_id=message.client_request_id,
            traceparent=asked.traceparent,
        )

    def start(self, request: Request) -> Running:
        """Begins it. Whoever called must close it when the client goes away."""
        return self.registry.start(self.run(request), request.deadline, request.facts)


def receipt_headers(receipt: Receipt, usage: Usage) -> dict[str, str]:
    """The `x-penstock-*` fields of a complete answer."""
    return {
        f"{PREFIX}request-id": receipt.request_id,
        f"{PREFIX}provider": receipt.provider,
        f"{PREFIX}model": receipt.model,
        f"{PREFIX}reason": receipt.reason,
        f"{PREFIX}cache": verdict_name(receipt.cache),
        f"{PREFIX}cost-nano-usd": str(receipt.cost_nano_usd),
        f"{PREFIX}baseline-cost-nano-usd": str(receipt.baseline_cost_nano_usd),
        f"{PREFIX}reservation-id": receipt.reservation_id,
        f"{PREFIX}prompt-tokens": str(usage.prompt_tokens),
        f"{PREFIX}cached-prompt-tokens": str(usage.cached_prompt_tokens),
        f"{PREFIX}completion-tokens": str(usage.completion_tokens),
    }


def error_headers(error: PenstockError, request_id: str) -> dict[str, str]:
    """The same fields of an error, as far as they are known: it may have cost something."""
    found = {f"{PREFIX}request-id": request_id, f"{PREFIX}error-reason": error.reason}
    for fact in ("cost_nano_usd", "reservation_id"):
        if value := error.metadata.get(fact):
            found[f"{PREFIX}{fact.replace('_', '-')}"] = value
    return found


def caller_headers(
    pairs: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]],
) -> dict[str, str]:
    """Metadata or headers as text by lower-case name; binary values and repeats are left out."""
    found: dict[str, str] = {}
    for name, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
        if isinstance(value, str):
            found.setdefault(name.lower(), value)
    return found
