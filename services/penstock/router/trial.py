"""One attempt of a request under way: what is held for it, what came of it so far."""

from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.core.assemble import Assembler
from penstock.core.telemetry_request import Child, RequestTrace
from penstock.quota.v1.quota_pb2 import POOL_KIND_LOCAL
from penstock.router import tracing
from penstock.router.estimate import Meter
from penstock.router.events import Event
from penstock.router.hold import Hold
from penstock.router.policy import Attempt
from penstock.router.ports import Ledger
from penstock.router.receipt import OK
from penstock.router.request import Request
from penstock.router.slices import Slices


@dataclass
class Try:
    attempt: Attempt
    meter: Meter
    hold: Hold
    span: Child
    answer: Assembler = field(default_factory=Assembler)
    started: bool = False
    """Something came: a client that streams has seen it, and nothing is retried from here on."""
    kept: list[Event] = field(default_factory=list)
    """What a client that does not stream will get, once it is whole."""
    is_cut: bool = False
    """It was ended at the edge of a budget."""

    @property
    def outcome(self) -> str:
        """Of an attempt that answered: why the answer is not whole, if it is not."""
        return self.hold.refusal.reason if self.is_cut and self.hold.refusal else OK


def begin(
    attempt: Attempt,
    request: Request,
    ledger: Ledger,
    trace: RequestTrace,
    *,
    index: int,
    slice_tokens: int,
    failed_open: Callable[[], None],
) -> Try:
    """The request's `index`-th try, the first is 1; nothing is held or sent yet."""
    meter = Meter(
        attempt.price,
        prompt_tokens_bound=attempt.prompt_tokens_bound,
        completion_tokens_bound=attempt.completion_tokens_bound,
        counted=attempt.pool == POOL_KIND_LOCAL,
        reasoning=attempt.reasoning,
    )
    slices = Slices(attempt, request.choices, slice_tokens)
    held_nano_usd = slices.held.amount_nano_usd
    span = trace.child(
        f"attempt {attempt.label}", tracing.of_attempt(attempt, index, held_nano_usd)
    )
    hold = Hold(ledger, request, slices, meter, span, index, failed_open)
    return Try(attempt, meter, hold, span)
