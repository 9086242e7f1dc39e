"""What came back, with what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.assemble import finish_word
from penstock.router.v1.router_pb2 import (
    CACHE_VERDICT_HIT,
    CACHE_VERDICT_SHARED,
    GenerateResponse,
    Receipt,
)
from penstock.type.v1.chat_pb2 import (
    FINISH_REASON_UNSPECIFIED,
    Choice,
    ChoiceDelta,
    ToolCall,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer.

    Attributes:
        response: All of it, as the router sent it.
    """

    response: GenerateResponse

    @property
    def choices(self) -> Sequence[Choice]:
        return self.response.choices

    @property
    def text(self) -> str:
        """Of the first choice; empty where it only calls tools."""
        return "".join(p.text for c in self.choices[:1] for p in c.message.content)

    @property
    def tool_calls(self) -> Sequence[ToolCall]:
        """Of the first choice."""
        return [call for c in self.choices[:1] for call in c.message.tool_calls]

    @property
    def finish_reason(self) -> str:
        """Of the first choice: "stop", "length", "tool_calls", "content_filter" or "budget"."""
        reason = self.choices[0].finish_reason if self.choices else FINISH_REASON_UNSPECIFIED
        return finish_word(reason)

    @property
    def usage(self) -> Usage:
        return self.response.usage

    @property
    def receipt(self) -> Receipt:
        return self.response.receipt

    @property
    def request_id(self) -> str:
        return self.receipt.request_id

    @property
    def provider(self) -> str:
        """Who answered: "local", "cache", or the paid provider's name."""
        return self.receipt.provider

    @property
    def model(self) -> str:
        return self.receipt.model

    @property
    def reason(self) -> str:
        """Why it was answered there, e.g. "local_first", "spill_full" or "exact_hit"."""
        return self.receipt.reason

    @property
    def is_cached(self) -> bool:
        return self.receipt.cache in (CACHE_VERDICT_HIT, CACHE_VERDICT_SHARED)

    @property
    def cost_nano_usd(self) -> int:
        """What it was charged, all attempts together; 0 for a hit."""
        return self.receipt.cost_nano_usd

    @property
    def baseline_cost_nano_usd(self) -> int:
        """What the alias's baseline model would have charged."""
        return self.receipt.baseline_cost_nano_usd

    @property
    def saved_nano_usd(self) -> int:
        return self.receipt.saved_nano_usd


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed answer."""

    deltas: Sequence[ChoiceDelta]

    @property
    def text(self) -> str:
        """What it adds to the first choice."""
        return "".join(delta.content for delta in self.deltas if delta.index == 0)
