"""One generation over HTTP: started, watched for a client that hangs up, and answered."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.core.assemble import Assembler
from penstock.core.errors import Internal
from penstock.core.status import told
from penstock.router.events import Delta, Done, Event, Started
from penstock.router.front import PREFIX, receipt_headers
from penstock.router.http import bodies
from penstock.router.http.bodies import Shape
from penstock.router.http.chunks import Chunks
from penstock.router.running import Running

_encode = msgspec.json.Encoder().encode

SSE_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
"""Proxies must hand on each event as it comes."""


class Hangup:
    """Closes a flow when its client goes away: the server says so by `receive`, at once."""

    def __init__(self, receive: Receive, running: Running) -> None:
        self._receive = receive
        self._running = running
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._running.close()

    def stop(self) -> None:
        self._task.cancel()


async def whole(running: Running, shape: Shape, request_id: str) -> Response:
    """The complete answer.

    Raises:
        PenstockError: the flow's.
    """
    answer = Assembler()
    started: Started | None = None
    while batch := await running.batch():
        for event in batch:
            if isinstance(event, Started):
                started = event
            elif isinstance(event, Delta):
                answer.add(event.deltas)
            elif started is not None:
                return _whole_response(shape, answer, event, started, request_id)
    raise Internal("the flow ended without a receipt; report this with the request's id")


def _whole_response(
    shape: Shape, answer: Assembler, done: Done, started: Started, request_id: str
) -> Response:
    return Response(
        _encode(bodies.whole(shape, answer.choices(), done, started)),
        headers={
            **receipt_headers(done.receipt, done.usage),
            "x-request-id": request_id,
            "content-type": "application/json",
        },
    )


@dataclass
class Stream:
    """The answer to a request with `stream`: an ASGI app that Starlette calls as a response."""

    running: Running
    hangup: Hangup
    chunks: Chunks
    first: list[Event]
    """Nothing is sent before it is there: until then an error still has its own HTTP status."""
    request_id: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._headers()})
            await self._send_all(send)
        finally:
            self.hangup.stop()
            self.running.close()

    async def _send_all(self, send: Send) -> None:
        batch = self.first
        try:
            while batch:
                await send(_piece(self.chunks.feed(batch), more=True))
                batch = await self.running.batch()
        except Exception as error:  # noqa: BLE001 - the boundary: the stream ends with an error event
            await send(_piece(self.chunks.fail(told(error), self.request_id), more=True))
        await send(_piece(b"", more=False))

    def _headers(self) -> list[tuple[bytes, bytes]]:
        """Those that are known at the start; the rest is in the last chunk."""
        found = {
            **SSE_HEADERS,
            "x-request-id": self.request_id,
            f"{PREFIX}request-id": self.request_id,
        }
        for event in self.first:
            if isinstance(event, Started):
                found[f"{PREFIX}provider"] = event.provider
                found[f"{PREFIX}model"] = event.model
        return [(name.encode(), value.encode()) for name, value in found.items()]


def _piece(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}
