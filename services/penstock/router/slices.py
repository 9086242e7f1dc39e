"""How much of an attempt is held at once, and when the next slice is due. Pure.

A slice is a number of output tokens. The hold always covers the whole input and the output that was
handed on, with an end-of-text token for each choice that goes on: some upstreams count it, and none
shows it.
"""

from dataclasses import dataclass, field

from penstock.router.backends.base import Chunk
from penstock.router.policy import Attempt
from penstock.type.v1.chat_pb2 import FINISH_REASON_BUDGET, ChoiceDelta


@dataclass(frozen=True, slots=True)
class Part:
    """What is held for an attempt, in all."""

    completion_tokens: int
    tokens: int
    amount_nano_usd: int


def part_of(attempt: Attempt, completion_tokens: int) -> Part:
    """Upper bound of the whole input and of so many output tokens."""
    prompt_tokens = attempt.prompt_tokens_bound
    amount = attempt.price.bound_nano_usd(
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
    )
    return Part(completion_tokens, prompt_tokens + completion_tokens, amount)


def first_part(attempt: Attempt, slice_tokens: int) -> Part:
    """What is reserved before anything is sent: one slice, or the whole bound where that is no
    more. A reasoning model is held as a whole: what it makes and does not show cannot be followed.
    """
    bound = attempt.completion_tokens_bound
    sliced = slice_tokens > 0 and not attempt.reasoning
    return part_of(attempt, min(bound, slice_tokens) if sliced else bound)


@dataclass(slots=True)
class Slices:
    """The hold of one attempt, as its answer comes."""

    attempt: Attempt
    choices: int
    slice_tokens: int
    held: Part = field(init=False)
    _ended: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.held = first_part(self.attempt, self.slice_tokens)

    @property
    def is_whole(self) -> bool:
        """Whatever still comes is held."""
        return self.held.completion_tokens >= self.attempt.completion_tokens_bound

    def needed(self, chunk: Chunk, completion_tokens: int) -> int:
        """Output tokens that must be held for the chunk to be handed on; with it, the attempt
        would be charged `completion_tokens` at most.
        """
        ended = self._ended | {d.index for d in chunk.deltas if d.finish_reason}
        return completion_tokens + max(0, self.choices - len(ended))

    def holds(self, needed: int) -> bool:
        return self.is_whole or needed <= self.held.completion_tokens

    def is_low(self, needed: int) -> bool:
        """Less than half a slice is left."""
        left = self.held.completion_tokens - needed
        return not self.is_whole and left < self.slice_tokens / 2

    def next(self, needed: int) -> Part:
        """What is needed and one slice more, never beyond the attempt's bound."""
        tokens = max(needed, self.held.completion_tokens) + self.slice_tokens
        return part_of(self.attempt, min(tokens, self.attempt.completion_tokens_bound))

    def hand_on(self, chunk: Chunk) -> None:
        self._ended |= {d.index for d in chunk.deltas if d.finish_reason}

    def last_deltas(self) -> list[ChoiceDelta]:
        """The end of each choice that goes on, at the edge of the budget."""
        return [
            ChoiceDelta(index=index, finish_reason=FINISH_REASON_BUDGET)
            for index in range(self.choices)
            if index not in self._ended
        ]
