"""What every server does around every call: checks the bearer token, turns errors into
google.rpc.Status.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from penstock.core import errors
from penstock.core.status import to_status

logger = logging.getLogger(__name__)

STATUS_DETAILS = "grpc-status-details-bin"
OPEN_METHODS = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Tell nothing of money or answers; load balancers and tools call them without a token."""

Handler: TypeAlias = Any
"""grpc.RpcMethodHandler, whose fields differ by the kind of call."""
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.PenstockError) -> None:
    """Ends the call with the error's code and details; trailers that were set before are kept."""
    details = (STATUS_DETAILS, to_status(error).SerializeToString())
    trailers = [*(context.trailing_metadata() or ()), details]
    await context.abort(error.code, error.message, tuple(trailers))


def _told(error: BaseException) -> errors.PenstockError:
    if isinstance(error, errors.PenstockError):
        return error
    logger.error("unexpected error", exc_info=error)
    return errors.Internal(f"unexpected {type(error).__name__}; see the service's log")


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
        if handler.response_streaming:
            inner_stream: Any = handler.stream_stream or handler.unary_stream

            async def stream(request: Any, context: Any) -> Any:
                try:
                    async for reply in inner_stream(request, context):
                        yield reply
                except (asyncio.CancelledError, grpc.aio.AbortError):
                    raise
                except Exception as error:  # noqa: BLE001 - the boundary: the caller gets a code
                    await abort(context, _told(error))

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(stream, handler.request_deserializer, handler.response_serializer)
        inner: Any = handler.stream_unary or handler.unary_unary

        async def unary(request: Any, context: Any) -> Any:
            try:
                return await inner(request, context)
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: the caller gets a code
                await abort(context, _told(error))

        make_unary = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make_unary(unary, handler.request_deserializer, handler.response_serializer)


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
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        given_bytes = given if isinstance(given, bytes) else given.encode()
        handler = await continuation(handler_call_details)
        if handler is None or hmac.compare_digest(given_bytes, self._expected):
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

    if handler.response_streaming:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_stream_rpc_method_handler(stream)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(unary)
    return grpc.unary_unary_rpc_method_handler(unary)
