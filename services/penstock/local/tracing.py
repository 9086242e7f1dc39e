"""One span a generation, a child of the router's attempt (W3C `traceparent` in the metadata)."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from penstock.core import semconv, telemetry
from penstock.local.config import ReplicaSettings
from penstock.local.v1 import local_pb2


def setup() -> None:
    """Exports spans where the standard OTEL_ variables say so."""
    telemetry.setup("local")


class Generation:
    """What is told of one request as it goes on."""

    def __init__(self, span: telemetry.OperationSpan | telemetry.Nothing) -> None:
        self._span = span
        self._began = time.monotonic()
        self._has_token = False

    def admitted(self) -> None:
        if self._span.recording:
            self._span.event("admitted")

    def sent(self, message: local_pb2.GenerateResponse) -> None:
        if not self._span.recording:
            return
        if message.deltas and not self._has_token:
            self._has_token = True
            self._span.set({semconv.TIME_TO_FIRST_CHUNK: time.monotonic() - self._began})
        # Set with each message, so that a cancelled stream shows what was made.
        self._span.set(
            {
                semconv.INPUT_TOKENS: message.prompt_tokens,
                semconv.OUTPUT_TOKENS: message.completion_tokens_so_far,
            }
        )


@contextmanager
def generation(metadata: Sequence[tuple[str, Any]], model: ReplicaSettings) -> Iterator[Generation]:
    span = telemetry.operation_span(
        f"chat {model.name}",
        telemetry.from_metadata(metadata),
        {
            semconv.OPERATION: semconv.CHAT,
            semconv.REQUEST_MODEL: model.name,
            semconv.PROVIDER: f"penstock.{model.engine}",
        },
    )
    with span:
        try:
            yield Generation(span)
        except (GeneratorExit, asyncio.CancelledError) as error:
            span.event("cancelled")
            span.fail(error)
            raise
