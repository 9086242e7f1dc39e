"""What every server does around every call: checks the bearer token, turns errors into
google.rpc.Status.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from penstock.core import errors
from penstock.core.status import to_status, told

STATUS_DETAILS = "grpc-status-details-bin"
OPEN_METHODS = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Tell nothing of money or answers; load balancers and tools call them without a token."""

Handler: TypeAlias = Any
"""grpc.RpcMethodHandler, whose fields differ by the kind of call."""
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Metadata: TypeAlias = Iterable[tuple[str, Any]]
Deserializer: TypeAlias = Callable[[bytes], Any]


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.PenstockError) -> None:
    """Ends the call with the error's code and details; trailers that were set before are kept."""
    details = (STATUS_DETAILS, to_status(error).SerializeToString())
    trailers = [*(context.trailing_metadata() or ()), details]
    await context.abort(error.code, error.message, tuple(trailers))


def carries(metadata: Metadata | None, expected: bytes) -> bool:
    """Whether the call shows this `authorization`; takes as long for a wrong one as for a right."""
    given = dict(metadata or ()).get("authorization", "")
    return hmac.compare_digest(given if isinstance(given, bytes) else given.encode(), expected)


def rebuilt(
    handler: Handler, *, unary: Any, stream: Any, read: Deserializer | None = None
) -> Handler:
    """The same kind of handler with the same codecs over `unary`, or `stream` where it streams.

    `read`: takes the place of its deserializer.
    """
    make, behaviour = _KINDS[handler.request_streaming, handler.response_streaming], unary
    if handler.response_streaming:
        behaviour = stream
    return make(behaviour, read or handler.request_deserializer, handler.response_serializer)


def _forgiving(deserializer: Deserializer) -> Deserializer:
    """Gives the fault in the message's place: what a deserializer raises, gRPC tells as UNKNOWN."""

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return errors.InvalidRequest(
                "the message is no valid protobuf of this method's request; texts are UTF-8",
                reason="MESSAGE_MALFORMED",
            )

    return read


_KINDS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By (the request streams, the response streams)."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """PenstockError → its code and details; anything else → INTERNAL, logged, its text kept to
    ourselves.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN_METHODS):
            return handler
        inner_stream: Any = handler.stream_stream or handler.unary_stream
        inner: Any = handler.stream_unary or handler.unary_unary

        async def stream(request: Any, context: Any) -> Any:
            try:
                _check(request)
                async for reply in inner_stream(request, context):
                    yield reply
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: the caller gets a code
                await abort(context, told(error))

        async def unary(request: Any, context: Any) -> Any:
            try:
                _check(request)
                return await inner(request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: the caller gets a code
                await abort(context, told(error))

        read = handler.request_deserializer
        if read is not None and not handler.request_streaming:
            read = _forgiving(read)
        return rebuilt(handler, unary=unary, stream=stream, read=read)


def _check(request: Any) -> None:
    if isinstance(request, errors.InvalidRequest):
        raise request


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses callers without the service's own token; health and reflection stay open."""

    def __init__(self, token: str) -> None:
        assert token, "a service without a token would be open to anybody"
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        if handler_call_details.method.startswith(OPEN_METHODS):
            return await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        if handler is None or carries(handler_call_details.invocation_metadata, self._expected):
            return handler
        return _refusing(handler)


def _refusing(handler: Handler) -> Handler:
    error = errors.Unauthenticated(
        "this port takes only calls with this service's token", reason="SERVICE_TOKEN_INVALID"
    )

    async def unary(_: Any, context: Any) -> None:
        await abort(context, error)

    async def stream(_: Any, context: Any) -> Any:
        await abort(context, error)
        yield  # makes it a generator; never reached

    # Without codecs: what a stranger sends is not even parsed.
    make = _KINDS[handler.request_streaming, handler.response_streaming]
    return make(stream if handler.response_streaming else unary)
