"""What the flow knows of whatever generates: our own replicas, or a paid API."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from penstock.core.deadline import Deadline, late
from penstock.core.errors import PenstockError
from penstock.type.v1.chat_pb2 import ChatInput, ChoiceDelta, Usage


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt, ready to be sent: `input.max_tokens` is set, and everything was validated."""

    request_id: str
    model: str
    """The catalogue's name, without the provider."""
    input: ChatInput
    deadline: Deadline
    traceparent: str = ""
    wait_seconds_max: float = 0.0
    """How long to wait for a free place in the pool before CapacityExhausted; 0: do not wait."""
    user: str = ""
    """The client's own name for its end user, handed on to a paid provider; empty: none."""
    on_sent: Callable[[], None] = lambda: None
    """Called before the first byte of it leaves: until then nobody can bill it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What came in one piece: deltas, or at the end the upstream's own count."""

    deltas: Sequence[ChoiceDelta] = ()
    usage: Usage | None = None
    """In the last chunk only; summed over the choices."""
    prompt_tokens: int = 0
    """The engine's count, as soon as it is known; 0 before."""
    completion_tokens_so_far: int = 0
    """The engine's running count; 0 where the upstream tells none."""


class Billing(Enum):
    """What the upstream may have billed for an attempt that failed."""

    NOTHING = "nothing"
    """It never began (refused, full, not reached): the hold is voided."""
    UNKNOWN = "unknown"
    """It may have begun: a conservative bound is charged (LEDGER, I5)."""


class AttemptFailed(Exception):
    """An attempt failed; the flow decides whether another follows.

    Attributes:
        error: What the client is told if nothing else helps.
        billing: What the upstream may have billed.
        fall_back: Another target may do better. False: the request itself is at fault.
    """

    def __init__(self, error: PenstockError, *, billing: Billing, fall_back: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.billing = billing
        self.fall_back = fall_back


def deadline_passed(billing: Billing) -> AttemptFailed:
    """The request's own time is over: no other target could still answer."""
    return AttemptFailed(late(), billing=billing, fall_back=False)


class Backend(Protocol):
    """Generates. Closing the generator (or cancelling the task) stops the upstream at once."""

    def generate(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """Chunks until the last one, which has `usage`.

        A stream that ends without usage ends all the same: the flow then charges a bound.

        Raises:
            AttemptFailed: before or after the first chunk.
        """
        ...


@dataclass(frozen=True, slots=True)
class PoolView:
    """What the policy sees of a local model's replicas."""

    ready_replicas: int = 0
    free_slots: int = 0
    """Choices that could start at once, over all replicas whose breaker is closed."""
    queue_room: int = 0
    """Choices that could still wait in the replicas."""
    expected_wait_ms: int = 0
    """Until a slot is free; 0 while one is."""


@dataclass(frozen=True, slots=True)
class ProviderView:
    """What the policy sees of a paid provider."""

    label: str
    """The name in receipts and in the ledger: the provider's, or e.g. "openai-stand-in"."""
    enabled: bool = False
    """A key is configured."""
    retry_after_seconds: float | None = None
    """Set while its breaker is open, or the provider asked for a pause."""


@dataclass(frozen=True, slots=True)
class Views:
    """The state of everything that can answer, at one moment."""

    pools: dict[str, PoolView] = field(default_factory=dict)
    providers: dict[str, ProviderView] = field(default_factory=dict)
