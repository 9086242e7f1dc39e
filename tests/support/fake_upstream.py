"""A paid API that fails on purpose: a real HTTP server on a free port, speaking OpenAI's protocol.

async with FakeUpstream() as upstream:
    upstream.answer = sse(*pieces("hello"))
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Answer = Callable[["FakeUpstream"], Response]

HANG = object()
"""In a stream: from here nothing more comes, and the connection stays open."""

BREAK = object()
"""In a stream: the connection breaks here, in the middle of the body."""


class _Quiet(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they belong to the test runner


class FakeUpstream:
    """Answers every request with `answer`, and remembers what came and whether it was hung up."""

    def __init__(self) -> None:
        self.answer: Answer = sse(*pieces("hello"))
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.hung_up = asyncio.Event()
        """Set when a client closed a stream before its end."""
        self._ended = asyncio.Event()
        paths = ("/v1/chat/completions", "/v1/completions")
        app = Starlette(routes=[Route(p, self._take, methods=["POST"]) for p in paths])
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
        self._server = _Quiet(config)

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended.set()
        self._server.should_exit = True
        self._server.force_exit = True
        await self._serving

    async def _take(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        self.paths.append(request.url.path)
        return self.answer(self)

    async def held(self) -> None:
        """Waits as long as the test runs."""
        await self._ended.wait()


def piece(
    content: str | None = None, *, index: int = 0, finish: str | None = None, **more: Any
) -> dict[str, Any]:
    """One chunk of a chat completion, of one choice."""
    delta = {"content": content} if content is not None else {}
    choice = {"index": index, "delta": delta | more, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def usage(prompt: int = 7, completion: int = 3, **details: Any) -> dict[str, Any]:
    """The last chunk."""
    told = {"prompt_tokens": prompt, "completion_tokens": completion, **details}
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": told}


def pieces(text: str) -> list[dict[str, Any]]:
    """A whole answer: role, one piece a word, finish, usage."""
    words = [piece(word) for word in text.split(" ")]
    return [piece(role="assistant"), *words, piece(finish="stop"), usage()]


def sse(
    *events: Any,
    gap_seconds: float = 0,
    content_type: str = "text/event-stream",
    done: bool = True,
) -> Answer:
    """A stream. An event is a chunk (dict), raw text, HANG or BREAK."""

    def answer(upstream: FakeUpstream) -> Response:
        async def body() -> AsyncIterator[str]:
            try:
                for event in events:
                    if event is HANG:
                        await upstream.held()
                        return
                    if event is BREAK:
                        raise ConnectionAbortedError
                    text = event if isinstance(event, str) else json.dumps(event)
                    yield f"data: {text}\n\n"
                    # A slow provider: time itself is what is tested.
                    await asyncio.sleep(gap_seconds)
                if done:
                    yield "data: [DONE]\n\n"
            except asyncio.CancelledError:
                upstream.hung_up.set()
                raise

        return StreamingResponse(body(), media_type=content_type)

    return answer


def failing(status: int, headers: Mapping[str, str] | None = None, **error: Any) -> Answer:
    """An error in OpenAI's shape."""
    error = {"message": "no", "type": "test", "code": None} | error
    return lambda _: JSONResponse({"error": error}, status, headers)


def page(text: str, content_type: str) -> Answer:
    """HTTP 200 with something that is no stream."""
    return lambda _: Response(text, 200, media_type=content_type)


def silent() -> Answer:
    """Takes the request and says nothing, not even a status."""

    class Never(Response):
        def __init__(self, upstream: FakeUpstream) -> None:
            super().__init__()
            self._upstream = upstream

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            upstream = self._upstream
            gone = asyncio.create_task(_gone(receive, upstream))
            ended = asyncio.create_task(upstream.held())
            await asyncio.wait({gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            for task in (gone, ended):
                task.cancel()

    return Never


async def _gone(receive: Any, upstream: FakeUpstream) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    upstream.hung_up.set()
