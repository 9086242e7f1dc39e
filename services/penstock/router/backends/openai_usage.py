"""What a stream says of its tokens, summed over the choices. Pure.

Upstreams report in three ways, and all must give the same sum:

- OpenAI: one chunk without choices, which counts all choices together;
- llama.cpp's server: one chunk without choices *per choice*, each with the tokens of that choice
  alone (n = 3 of 8 tokens each gives three chunks of 8): completion tokens are added up; for a raw
  prompt they come beside the last piece of each choice;
- some others: a running total beside every chunk, and a last one without choices: that one counts.

The prompt is the same for all choices and counts once.
"""

from typing import Any

from penstock.type.v1.chat_pb2 import Usage


class UsageTally:
    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._alone: list[Usage] = []
        self._beside: dict[int, Usage] = {}

    def add(self, chunk: Any) -> None:
        """Takes over a chunk's report, if it has one.

        Raises:
            AttributeError, TypeError, ValueError: it is not of OpenAI's shape.
        """
        reported = getattr(chunk, "usage", None)
        if reported is None:
            return
        usage = _usage(reported)
        if chunk.choices:
            self._beside[chunk.choices[0].index] = usage
        else:
            self._alone.append(usage)

    @property
    def is_final(self) -> bool:
        """No report that may still come changes the sum, whichever of the ways it is."""
        return len(self._alone) >= self._choices

    def total(self) -> Usage | None:
        """None: the upstream reported nothing."""
        if not self._alone:
            parts = list(self._beside.values())
        elif len(self._alone) == self._choices:
            parts = self._alone
        else:
            parts = self._alone[-1:]
        return _sum(parts) if parts else None


def _usage(reported: Any) -> Usage:
    prompt, completion = reported.prompt_tokens_details, reported.completion_tokens_details
    usage = Usage(
        prompt_tokens=reported.prompt_tokens,
        completion_tokens=reported.completion_tokens,
        cached_prompt_tokens=(prompt.cached_tokens if prompt else 0) or 0,
        reasoning_tokens=(completion.reasoning_tokens if completion else 0) or 0,
    )
    if min(usage.prompt_tokens, usage.completion_tokens) < 0:
        raise ValueError("a negative count of tokens")
    return usage


def _sum(parts: list[Usage]) -> Usage:
    return Usage(
        prompt_tokens=max(p.prompt_tokens for p in parts),
        # After the first choice the whole prompt is in llama.cpp's cache: the first one's counts.
        cached_prompt_tokens=min(p.cached_prompt_tokens for p in parts),
        completion_tokens=sum(p.completion_tokens for p in parts),
        reasoning_tokens=sum(p.reasoning_tokens for p in parts),
    )
