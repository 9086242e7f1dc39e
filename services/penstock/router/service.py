"""The gRPC front: `penstock.router.v1.RouterService`."""

from collections.abc import AsyncGenerator
from typing import Any

import grpc

from penstock.core.assemble import Assembler, joined
from penstock.core.errors import Internal, PenstockError
from penstock.core.telemetry_context import from_metadata
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.events import Delta, Done, Event, Started
from penstock.router.front import Asked, Front, caller_headers, error_headers, receipt_headers
from penstock.router.request import Request
from penstock.router.running import Running
from penstock.router.v1.router_pb2 import (
    ExplainRouteResponse,
    GenerateRequest,
    GenerateResponse,
    GenerateStreamResponse,
    ListModelsRequest,
    ListModelsResponse,
)
from penstock.router.v1.router_pb2_grpc import RouterServiceServicer
from penstock.type.v1.chat_pb2 import ChoiceDelta

Context = grpc.aio.ServicerContext[Any, Any]


class RouterService(RouterServiceServicer):
    """Proto to domain and back. Generations, also failed ones, have the `x-penstock-*` trailers."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Generate(self, request: GenerateRequest, context: Context) -> GenerateResponse:
        request_id = self._front.new_request_id()
        try:
            running = self._front.start(await self._request(request, context, request_id))
            _close_with(context, running)
            return await self._collect(running, context)
        except PenstockError as error:
            _tell(context, error, request_id)
            raise

    async def GenerateStream(
        self, request: GenerateRequest, context: Context
    ) -> AsyncGenerator[GenerateStreamResponse, None]:
        request_id = self._front.new_request_id()
        try:
            running = self._front.start(
                await self._request(request, context, request_id, stream=True)
            )
            # Not left to the generator's own end: a client that hangs up while a message is being
            # sent would be noticed only when the generator is collected.
            _close_with(context, running)
            while batch := await running.batch():
                for reply in _replies(batch):
                    if reply.HasField("receipt"):
                        _set_trailers(context, receipt_headers(reply.receipt, reply.usage))
                    yield reply
        except PenstockError as error:
            _tell(context, error, request_id)
            raise

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        del request
        return ListModelsResponse(models=self._front.models(await self._principal(context)))

    async def ExplainRoute(
        self, request: GenerateRequest, context: Context
    ) -> ExplainRouteResponse:
        request_id = self._front.new_request_id()
        return await self._front.explain(await self._request(request, context, request_id))

    async def _principal(self, context: Context) -> Principal:
        return await self._front.principals.of(
            caller_headers(tuple(context.invocation_metadata() or ()))
        )

    async def _request(
        self, message: GenerateRequest, context: Context, request_id: str, *, stream: bool = False
    ) -> Request:
        # Both first: what is asked of the quota service comes out of the caller's time.
        arrived_at, seconds = self._front.clock.monotonic_seconds(), context.time_remaining()
        principal = await self._principal(context)
        asked = Asked(
            message,
            arrived_at=arrived_at,
            timeout_seconds=seconds,
            deadline_field="grpc-timeout",
            stream=stream,
            traceparent=from_metadata(context.invocation_metadata()),
        )
        return self._front.request(asked, principal, request_id)

    async def _collect(self, running: Running, context: Context) -> GenerateResponse:
        answer = Assembler()
        created = 0
        while batch := await running.batch():
            for event in batch:
                if isinstance(event, Started):
                    created = event.created_unix_seconds
                elif isinstance(event, Delta):
                    answer.add(event.deltas)
                else:
                    _set_trailers(context, receipt_headers(event.receipt, event.usage))
                    return GenerateResponse(
                        choices=answer.choices(),
                        usage=event.usage,
                        receipt=event.receipt,
                        created_unix_seconds=created,
                    )
        raise Internal("the flow ended without a receipt; report this with the request's id")


def _close_with(context: Context, running: Running) -> None:
    """Stops the flow the moment the call ends, however it ends."""

    def close(context: Context) -> None:
        del context
        running.close()

    context.add_done_callback(close)  # type: ignore[arg-type]  # the stub wants its own class


def _replies(batch: list[Event]) -> list[GenerateStreamResponse]:
    """At most two messages: what answers and all deltas, then usage and receipt."""
    replies: list[GenerateStreamResponse] = []
    deltas: list[ChoiceDelta] = []
    done: Done | None = None
    first: GenerateStreamResponse | None = None
    for event in batch:
        if isinstance(event, Started):
            first = GenerateStreamResponse(
                request_id=event.request_id,
                created_unix_seconds=event.created_unix_seconds,
                provider=event.provider,
                model=event.model,
            )
        elif isinstance(event, Delta):
            deltas.extend(event.deltas)
        else:
            done = event
    if first is not None:
        first.deltas.extend(joined(deltas))
        replies.append(first)
    elif deltas:
        replies.append(GenerateStreamResponse(deltas=joined(deltas)))
    if done is not None:
        replies.append(GenerateStreamResponse(usage=done.usage, receipt=done.receipt))
    return replies


def _tell(context: Context, error: PenstockError, request_id: str) -> None:
    error.metadata.setdefault("request_id", request_id)
    _set_trailers(context, error_headers(error, request_id))


def _set_trailers(context: Context, headers: dict[str, str]) -> None:
    context.set_trailing_metadata(tuple(headers.items()))
