"""The routes: /v1/chat/completions, /v1/completions, /v1/models, /healthz, /readyz."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from penstock.core.errors import Cancelled, InvalidRequest, NotFound
from penstock.core.health import Health
from penstock.core.status import told
from penstock.core.telemetry_context import from_headers
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.front import Asked, Front
from penstock.router.http import bodies, parse
from penstock.router.http.answer import Hangup, Stream, whole
from penstock.router.http.bodies import ChatShape, CompletionShape, Shape
from penstock.router.http.chunks import Chunks
from penstock.router.http.errors import renamed, response_of
from penstock.router.http.headers import TIMEOUT_HEADER
from penstock.router.validation.request import too_large

_encode = msgspec.json.Encoder().encode

BODY_SECONDS_MAX = 30.0
"""For a body to arrive: whoever sends slower holds a connection for nothing."""

PATHS = "POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /v1/models/{id}"

Parse = Callable[[bytes, Mapping[str, str]], parse.Parsed]
Endpoint = Callable[[Request], Awaitable[Response | Stream]]


class Api:
    """OpenAI's API over the router's flow."""

    def __init__(self, front: Front, health: Health) -> None:
        self._front = front
        self._health = health
        self._created = int(front.clock.unix_seconds())

    def app(self) -> Starlette:
        def guarded(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
            return self._guarded(endpoint)

        return Starlette(
            routes=[
                Route("/v1/chat/completions", guarded(self._chat), methods=["POST"]),
                Route("/v1/completions", guarded(self._completion), methods=["POST"]),
                Route("/v1/models", guarded(self._models), methods=["GET"]),
                Route("/v1/models/{model:path}", guarded(self._model), methods=["GET"]),
                Route("/healthz", self._healthz, methods=["GET"]),
                Route("/readyz", self._readyz, methods=["GET"]),
            ],
            exception_handlers={HTTPException: self._refused},
        )

    def _guarded(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """Every error leaves in OpenAI's shape, with the request's id."""

        async def guarded(request: Request) -> Response:
            request.state.request_id = self._front.new_request_id()
            try:
                return await endpoint(request)  # type: ignore[return-value]  # an ASGI app too
            except ClientDisconnect:
                error = told(Cancelled("the client went away before the request was complete"))
            except Exception as unexpected:  # noqa: BLE001 - the boundary: the client gets a status
                error = told(unexpected)
            return response_of(error, request.state.request_id)

        return guarded

    async def _chat(self, request: Request) -> Response | Stream:
        return await self._generate(request, parse.chat, ChatShape())

    async def _completion(self, request: Request) -> Response | Stream:
        return await self._generate(request, parse.completion, CompletionShape())

    async def _generate(self, request: Request, parser: Parse, shape: Shape) -> Response | Stream:
        # All that follows comes out of the caller's time.
        arrived_at = self._front.clock.monotonic_seconds()
        # The key comes first: nobody without one makes us read and parse a body.
        principal = await self._front.principals.of(request.headers)
        body = await self._body(request)
        parsed = parser(body, request.headers)
        asked = Asked(
            parsed.message,
            arrived_at=arrived_at,
            timeout_seconds=parsed.timeout_seconds,
            deadline_field=TIMEOUT_HEADER,
            stream=parsed.stream,
            traceparent=from_headers(request.headers),
        )
        try:
            chunks = Chunks(shape, include_usage=parsed.include_usage)
            return await self._answer(request, asked, principal, shape, chunks)
        except InvalidRequest as error:
            raise renamed(error, parsed.rename) from None

    async def _answer(
        self, request: Request, asked: Asked, principal: Principal, shape: Shape, chunks: Chunks
    ) -> Response | Stream:
        request_id: str = request.state.request_id
        running = self._front.start(self._front.request(asked, principal, request_id))
        hangup = Hangup(request.receive, running)
        handed_over = False
        try:
            if not asked.stream:
                return await whole(running, shape, request_id)
            first = await running.batch()
            handed_over = True
            return Stream(running, hangup, chunks, first, request_id)
        finally:
            if not handed_over:
                hangup.stop()
                running.close()

    async def _body(self, request: Request) -> bytes:
        """The body, within the limits of size and time.

        Raises:
            InvalidRequest: UNSUPPORTED_MEDIA_TYPE, REQUEST_TOO_LARGE, BODY_TIMEOUT.
        """
        _check_media_type(request.headers)
        limit = self._front.catalogue().limits.request_bytes_max
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise too_large(int(length), limit)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS_MAX):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limit:
                        raise too_large(None, limit)
        except TimeoutError:
            raise InvalidRequest(
                f"the body did not arrive within {BODY_SECONDS_MAX:g} seconds; send it faster",
                reason="BODY_TIMEOUT",
            ) from None
        return bytes(body)

    async def _models(self, request: Request) -> Response:
        principal = await self._front.principals.of(request.headers)
        found = [bodies.model(m, self._created) for m in self._front.models(principal)]
        return _json({"object": "list", "data": found})

    async def _model(self, request: Request) -> Response:
        principal = await self._front.principals.of(request.headers)
        wanted = request.path_params["model"]
        for found in self._front.models(principal):
            if found.id == wanted:
                return _json(bodies.model(found, self._created))
        raise NotFound(
            "model: this key knows no model of that name; GET /v1/models lists those it may use",
            reason="MODEL_NOT_FOUND",
        )

    async def _healthz(self, request: Request) -> Response:
        """The process lives."""
        del request
        return _json({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        """Requests can be answered; 503 while a component is not ready, or the router drains."""
        del request
        if self._health.ready:
            return _json({"status": "ready"})
        told_ = {"status": "not ready", "waiting_for": self._health.waiting_for}
        return _json(told_, status=503)

    async def _refused(self, request: Request, error: Exception) -> Response:
        """No such path, or no such method on it."""
        assert isinstance(error, HTTPException)
        request_id = self._front.new_request_id()
        if error.status_code == 405:
            allow = (error.headers or {}).get("Allow", "")
            return response_of(
                InvalidRequest(
                    f"{request.method} is not allowed on this path; use {allow}",
                    reason="METHOD_NOT_ALLOWED",
                ),
                request_id,
                {"allow": allow},
            )
        if error.status_code == 404:
            return response_of(
                NotFound(f"there is no such path; there are {PATHS}", reason="PATH_NOT_FOUND"),
                request_id,
            )
        return response_of(InvalidRequest(str(error.detail)), request_id)


def _check_media_type(headers: Mapping[str, str]) -> None:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidRequest(
            "content-type: the body must be JSON; send `Content-Type: application/json`",
            reason="UNSUPPORTED_MEDIA_TYPE",
        )
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise InvalidRequest(
            "content-encoding: compressed bodies are not taken; send it as it is",
            reason="UNSUPPORTED_MEDIA_TYPE",
        )


def _json(value: object, status: int = 200) -> Response:
    return Response(_encode(value), status, media_type="application/json")
