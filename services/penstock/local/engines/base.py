"""What every engine is: a `ChatInput` goes in, deltas come out, and hanging up stops the model.

The currency is the protos of `penstock.type.v1`: no second set of types for the same things.

Errors, all of `penstock.core.errors`:

- `InvalidRequest`: the engine refuses the request; reason `CONTEXT_LENGTH_EXCEEDED` (metadata
  `prompt_tokens`, `context_tokens`) where the prompt is over a slot's context;
- `CapacityExhausted`: the engine itself takes no more (admission normally prevents it);
- `Unavailable` with reason `ENGINE_DEAD`: the engine is gone and this process should end.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from penstock.core.errors import FieldViolation, InvalidRequest, Unavailable
from penstock.type.v1 import chat_pb2

CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
ENGINE_DEAD = "ENGINE_DEAD"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """One model on one replica."""

    model: str
    """Name in the catalogue."""
    path: Path
    """File or folder of the weights, already resolved by `models.py`."""
    context_tokens: int
    """Of one slot: prompt and completion together."""
    slots: int
    """Choices that are generated at once."""
    threads: int = 1
    gpus: float = 0
    format: str = ""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's own figures, as fresh as its last step."""

    running: int
    """Requests inside the engine, waiting ones included."""
    tokens_per_second: float
    """Of one stream, exponentially weighted; 0 before the first."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer, as soon as the engine has it.

    The counters are running totals, so that whoever hangs up knows what was made so far.
    """

    choices: tuple[chat_pb2.ChoiceDelta, ...] = ()
    prompt_tokens: int = 0
    """0 until the engine has said it."""
    completion_tokens: int = 0
    """Generated so far, over all choices; text that is still held back counts."""
    usage: chat_pb2.Usage | None = None
    """In the last delta only: the engine's count, summed over the choices."""


class Engine(Protocol):
    """A model that is loaded once and asked many times, from one event loop."""

    @property
    def name(self) -> str:
        """`llamacpp` or `vllm`."""

    async def start(self) -> None:
        """Loads the model; returns when `generate` may be called.

        Raises:
            ModelUnusable: the weights are missing, broken or of a format that it cannot run.
        """

    def generate(self, chat: chat_pb2.ChatInput, *, request_id: str) -> AsyncGenerator[Delta, None]:
        """Deltas, and last exactly one with `usage`.

        `chat.max_tokens` is set. Closing the generator (or cancelling who iterates it) stops the
        model: while it decodes within 100 ms, in prefill after at most one batch; the engine's
        slot is free when `aclose` returns.
        """

    def stats(self) -> EngineStats: ...

    async def check_health(self) -> None:
        """Returns when the engine lives.

        Raises:
            Unavailable: with reason ENGINE_DEAD.
        """

    async def close(self) -> None:
        """Stops the model and frees its memory. Safe to call twice."""


class ModelUnusable(Exception):
    """The model cannot be loaded; says which file and why."""


def engine_dead(message: str) -> Unavailable:
    return Unavailable(f"the engine is dead: {message}", reason=ENGINE_DEAD)


def context_exceeded(*, prompt_tokens: int, context_tokens: int, field: str) -> InvalidRequest:
    """The one error of an over-long prompt, the same from every engine."""
    text = (
        f"the prompt has {prompt_tokens} tokens, more than the {context_tokens} of the model's "
        "context: shorten it or pick a model with a longer context"
    )
    return InvalidRequest(
        f"{field}: {text}",
        reason=CONTEXT_LENGTH_EXCEEDED,
        metadata={"prompt_tokens": str(prompt_tokens), "context_tokens": str(context_tokens)},
        violations=(FieldViolation(field, text),),
    )


def choice_count(chat: chat_pb2.ChatInput) -> int:
    """How many slots the request takes."""
    return max(1, chat.n) if chat.HasField("n") else 1


def input_field(chat: chat_pb2.ChatInput) -> str:
    """The field that holds the prompt, for error messages."""
    return "input.prompt" if chat.HasField("prompt") else "input.messages"
