"""Tokens and money of one attempt: upper bounds before it, what it used after it. Pure.

Bounds are never guesses: a byte-level tokenizer never makes more tokens than there are UTF-8 bytes,
plus what the chat template adds; and no upstream takes a prompt over its context.
"""

from dataclasses import dataclass

from penstock.core.catalogue import Template
from penstock.core.money import Price
from penstock.router.backends.base import Billing, Chunk
from penstock.type.v1.chat_pb2 import ChatInput, ChoiceDelta, Usage

REPORTED_TOKENS_MAX = 100_000_000
"""Of one attempt: ten times the longest context there is. A report beyond it is a fault, and what
it would cost might not even fit the ledger."""

TOKENS_PER_TOOL = 32
"""A tool's frame in the templates we know, beside its own text."""


def prompt_tokens_max(
    chat: ChatInput, *, template: Template, context_tokens: int, image_tokens_max: int | None
) -> int | None:
    """Upper bound of the prompt's tokens; None: cannot be bounded (an image of unknown size)."""
    if chat.HasField("prompt"):
        return min(len(chat.prompt.encode()) + template.tokens_base, context_tokens)
    tokens = template.tokens_base
    for message in chat.messages:
        tokens += template.tokens_per_message + len(message.name.encode())
        tokens += len(message.tool_call_id.encode())
        for call in message.tool_calls:
            tokens += TOKENS_PER_TOOL + len((call.id + call.name + call.arguments_json).encode())
        for part in message.content:
            if part.HasField("image_url"):
                if image_tokens_max is None:
                    return None
                tokens += image_tokens_max
            else:
                tokens += len((part.text or part.refusal).encode())
    for tool in chat.tools:
        text = tool.name + tool.description + tool.parameters_json
        tokens += TOKENS_PER_TOOL + len(text.encode())
    form = chat.response_format
    schema = form.schema_name + form.schema_description + form.schema_json
    return min(tokens + len(schema.encode()), context_tokens)


def delivered_tokens_max(delta: ChoiceDelta) -> int:
    """Upper bound of the tokens behind one delta: its bytes, and at least one."""
    text = delta.content + delta.refusal
    text += "".join(c.name + c.arguments_json for c in delta.tool_calls)
    return max(1, len(text.encode()), len(delta.logprobs))


@dataclass(frozen=True, slots=True)
class Used:
    """What an attempt is charged for."""

    usage: Usage
    amount_nano_usd: int


class Meter:
    """Follows one attempt's chunks, and says at any moment what it has used.

    Args:
        price: Of the attempt's model.
        prompt_tokens_bound: As it was reserved.
        completion_tokens_bound: Over all choices, as it was reserved.
        counted: The upstream counts as it goes (our own replicas do).
        reasoning: Makes tokens that are billed and not shown.
    """

    def __init__(
        self,
        price: Price,
        *,
        prompt_tokens_bound: int,
        completion_tokens_bound: int,
        counted: bool,
        reasoning: bool = False,
    ) -> None:
        self._price = price
        self._prompt_bound = prompt_tokens_bound
        self._completion_bound = completion_tokens_bound
        self._counted = counted
        self._reasoning = reasoning
        self._usage: Usage | None = None
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._delivered_max = 0
        self._is_sent = False

    @property
    def reported(self) -> bool:
        """The upstream's final count is here."""
        return self._usage is not None

    def sent(self) -> None:
        """The attempt leaves: from here on the upstream may bill it, whatever comes back."""
        self._is_sent = True

    def add(self, chunk: Chunk) -> None:
        self._is_sent = True
        self._delivered_max += sum(delivered_tokens_max(d) for d in chunk.deltas)
        self._prompt_tokens = max(self._prompt_tokens, chunk.prompt_tokens)
        self._completion_tokens = max(self._completion_tokens, chunk.completion_tokens_so_far)
        if chunk.usage is not None and _plausible(chunk.usage):
            self._usage = chunk.usage

    def after(self, chunk: Chunk) -> int:
        """Completion tokens that would be charged if it ended after this chunk."""
        if self._counted:
            # Our replicas' last message has their count, and often the last words too.
            last = chunk.usage.completion_tokens if chunk.usage is not None else 0
            return max(self._completion_tokens, chunk.completion_tokens_so_far, last)
        return self._delivered_max + sum(delivered_tokens_max(d) for d in chunk.deltas)

    def used(self, billing: Billing = Billing.UNKNOWN) -> Used:
        """What to charge; `billing` is what the failure said, UNKNOWN for a hang-up."""
        usage = self._settled_usage(billing)
        amount = self._price.cost_nano_usd(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
        )
        if usage.estimated:
            # Cached input may cost more than fresh input: the bound is the dearer of the two.
            amount = self._price.bound_nano_usd(
                prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
            )
        return Used(usage, amount)

    def _settled_usage(self, billing: Billing) -> Usage:
        if self._usage is not None:
            return self._usage
        if self._counted:
            return Usage(
                prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens
            )
        if billing is Billing.NOTHING or not self._is_sent:
            return Usage()
        # LEDGER.md, "The router's side of the bargain".
        completion = min(self._delivered_max, self._completion_bound)
        return Usage(
            prompt_tokens=self._prompt_bound,
            completion_tokens=self._completion_bound if self._reasoning else completion,
            estimated=True,
        )


def _plausible(usage: Usage) -> bool:
    """A report that cannot be is worth no more than none."""
    return (
        0 <= usage.cached_prompt_tokens <= usage.prompt_tokens <= REPORTED_TOKENS_MAX
        and 0 <= usage.reasoning_tokens <= usage.completion_tokens <= REPORTED_TOKENS_MAX
    )
