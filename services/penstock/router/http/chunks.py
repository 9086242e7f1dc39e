"""A flow's events as server-sent events of OpenAI's stream. Pure."""

from collections import Counter
from collections.abc import Iterator

import msgspec

from penstock.core.assemble import joined
from penstock.core.errors import PenstockError
from penstock.router.events import Delta, Done, Event, Started
from penstock.router.http import bodies
from penstock.router.http.bodies import Json, Shape
from penstock.router.http.errors import body_of
from penstock.type.v1.chat_pb2 import FINISH_REASON_UNSPECIFIED, ChoiceDelta

_encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


def event(told: Json) -> bytes:
    return b"data: " + _encode(told) + b"\n\n"


class Chunks:
    """Holds the last chunk back until the receipt is there.

    The `penstock` object belongs into the last chunk. With include_usage that is OpenAI's extra
    chunk without choices; without it clients read `choices[0]` of each chunk, so the last one with
    a finish reason is it.
    """

    def __init__(self, shape: Shape, *, include_usage: bool) -> None:
        self._shape = shape
        self._include_usage = include_usage
        self._started: Started | None = None
        self._spoke: set[int] = set()
        self._offsets: Counter[int] = Counter()
        self._held: Json | None = None

    def feed(self, batch: list[Event]) -> bytes:
        """What a batch of events adds to the stream; with `Done` it is the stream's end."""
        deltas: list[ChoiceDelta] = []
        done: Done | None = None
        for one in batch:
            if isinstance(one, Started):
                self._started = one
            elif isinstance(one, Delta):
                deltas.extend(one.deltas)
            else:
                done = one
        told = [chunk for delta in joined(deltas) for chunk in self._of_delta(delta)]
        if done is not None:
            told += self._last(done)
        return b"".join(event(chunk) for chunk in told) + (DONE if done is not None else b"")

    def _of_delta(self, delta: ChoiceDelta) -> Iterator[Json]:
        first = delta.index not in self._spoke
        self._spoke.add(delta.index)
        finish_reason = delta.finish_reason
        if finish_reason == FINISH_REASON_UNSPECIFIED:
            yield self._piece(delta, first=first)
            return
        # The reason comes in a chunk of its own, as with OpenAI.
        said = ChoiceDelta()
        said.CopyFrom(delta)
        said.ClearField("finish_reason")
        if first or said != ChoiceDelta(index=delta.index):
            yield self._piece(said, first=first)
        yield from self._release()
        end = ChoiceDelta(index=delta.index, finish_reason=finish_reason)
        self._held = self._piece(end, first=False)

    def _piece(self, delta: ChoiceDelta, *, first: bool) -> Json:
        offset = self._offsets[delta.index]
        self._offsets[delta.index] += bodies.token_characters(delta.logprobs)
        return self._chunk([self._shape.piece(delta, first=first, offset=offset)])

    def _release(self) -> Iterator[Json]:
        if self._held is not None:
            held, self._held = self._held, None
            yield held

    def _last(self, done: Done) -> Iterator[Json]:
        ours = bodies.penstock(done.receipt, done.usage)
        if self._held is not None and not self._include_usage:
            yield {**self._held, "penstock": ours}
            self._held = None
            return
        yield from self._release()
        last = self._chunk([])
        if self._include_usage:
            last["usage"] = bodies.usage(done.usage)
        yield {**last, "penstock": ours}

    def _chunk(self, choices: list[Json]) -> Json:
        assert self._started is not None, "a flow begins with Started"
        told = bodies.chunk(self._shape, self._started, choices)
        if self._include_usage:
            told["usage"] = None
        return told

    def fail(self, error: PenstockError, request_id: str) -> bytes:
        """The end of a stream that broke; there is no [DONE], so that nobody takes it for whole."""
        held = b"".join(event(chunk) for chunk in self._release())
        return held + event(body_of(error, request_id))
