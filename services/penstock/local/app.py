"""The Ray Serve application: one replica of one model, any engine, its own gRPC ingress.

With Serve's direct ingress each replica opens its own port and the router dials it there. Ray's
data plane takes calls without a token, so the replica itself checks the router's.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc

from penstock.core.clock import SystemClock
from penstock.core.errors import (
    FieldViolation,
    InvalidRequest,
    PenstockError,
    Unauthenticated,
)
from penstock.core.interceptors import STATUS_DETAILS, carries
from penstock.core.status import to_status, told
from penstock.local import tracing
from penstock.local.admission import Admission
from penstock.local.coalesce import coalesce
from penstock.local.config import DEPLOYMENT, ReplicaSettings, router_token
from penstock.local.engines import create
from penstock.local.engines.base import ENGINE_DEAD, Engine, EngineSettings, choice_count
from penstock.local.v1 import local_pb2

logger = logging.getLogger(__name__)

DETAILS_CHARACTERS_MAX = 1000
"""Of an error's text: trailers end at 8 KB, and a refused schema may be quoted at length."""

EXIT_SECONDS = 0.2
"""Between an engine's death and the end of its process: the errors in flight still get out."""

CALLS_BESIDE_GENERATION = 64
"""`Stats`, refusals and cancelled calls on their way out, which Serve counts as ongoing too."""

HEALTH_PERIOD_SECONDS = 2.0
"""How late Serve notices an engine that died while nobody asked it anything."""

HEALTH_TIMEOUT_SECONDS = 35.0
"""More than an engine's own probe may take, so that the engine's verdict is the one that counts."""


class CallContext(Protocol):
    """What of Serve's gRPC context is used."""

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]: ...

    def set_code(self, code: grpc.StatusCode) -> None: ...

    def set_details(self, details: str) -> None: ...

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, Any]]) -> None: ...


class Replica:
    """penstock.local.v1.LocalService over one engine. Methods are named as the RPCs are."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        model = ReplicaSettings.model_validate(settings)
        tracing.setup()
        engine = create(
            model.engine,
            EngineSettings(
                model=model.name,
                path=Path(model.path),
                context_tokens=model.context_tokens,
                slots=model.slots,
                threads=model.threads,
                gpus=model.gpus,
                format=model.format,
            ),
        )
        began = time.monotonic()
        await engine.start()
        self._set_up(model, engine, router_token(os.environ), time.monotonic() - began)

    def _set_up(
        self,
        model: ReplicaSettings,
        engine: Engine,
        token: str,
        load_seconds: float,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self._model = model
        self._engine = engine
        self._expected = f"Bearer {token}".encode()
        self._load_seconds = load_seconds
        self._leave = leave
        self._healthy = True
        self._admission = Admission(
            slots=model.slots, queue_limit=model.queue_limit, clock=SystemClock()
        )

    @classmethod
    def over(
        cls, model: ReplicaSettings, engine: Engine, *, token: str, leave: Callable[[int], Any]
    ) -> "Replica":
        """A replica over an engine that is already started, outside Ray."""
        replica = cls.__new__(cls)
        replica._set_up(model, engine, token, 0.0, leave)  # noqa: SLF001  # its own
        return replica

    async def Generate(
        self, request: local_pb2.GenerateRequest, grpc_context: CallContext
    ) -> AsyncGenerator[local_pb2.GenerateResponse, None]:
        try:
            self._check_token(grpc_context)
            with tracing.generation(grpc_context.invocation_metadata(), self._model) as span:
                async for message in self._generate(request, span):
                    yield message
        except Exception as error:  # noqa: BLE001  # the boundary: the caller gets a code
            self._refuse(grpc_context, error)

    async def _generate(
        self, request: local_pb2.GenerateRequest, span: tracing.Generation
    ) -> AsyncGenerator[local_pb2.GenerateResponse, None]:
        chat = request.input
        if chat.max_tokens < 1:
            raise InvalidRequest.of([FieldViolation("input.max_tokens", "must be set, at least 1")])
        async with self._admission.slot(choice_count(chat)):
            span.admitted()
            messages = coalesce(self._engine.generate(chat, request_id=request.request_id))
            try:
                async for message in messages:
                    span.sent(message)
                    if message.HasField("usage"):
                        message.load.CopyFrom(self._load())
                    yield message
            finally:
                await messages.aclose()

    async def Stats(
        self, _request: local_pb2.StatsRequest, grpc_context: CallContext
    ) -> local_pb2.StatsResponse:
        try:
            self._check_token(grpc_context)
        except PenstockError as error:
            self._refuse(grpc_context, error)
            return local_pb2.StatsResponse()
        return local_pb2.StatsResponse(
            load=self._load(),
            model=self._model.name,
            engine=self._engine.name,
            format=self._model.format,
            context_tokens=self._model.context_tokens,
            healthy=self._healthy,
            load_seconds=self._load_seconds,
        )

    async def check_health(self) -> None:
        """Serve calls it every few seconds."""
        try:
            await self._engine.check_health()
        except PenstockError as error:
            if error.reason == ENGINE_DEAD:
                self._die(error)
            raise

    def _load(self) -> local_pb2.Load:
        return local_pb2.Load(
            running=self._admission.running,
            waiting=self._admission.waiting,
            slots=self._model.slots,
            queue_limit=self._model.queue_limit,
            tokens_per_second=self._engine.stats().tokens_per_second,
            service_seconds=self._admission.service_seconds,
        )

    def _check_token(self, context: CallContext) -> None:
        if not carries(context.invocation_metadata(), self._expected):
            raise Unauthenticated(
                "a replica takes only calls with the router's token", reason="ROUTER_TOKEN_INVALID"
            )

    def _refuse(self, context: CallContext, error: Exception) -> None:
        """Ends the call with the error's code, its text as `REASON: message`, and its details.

        The caller must return then, not raise: Serve drops the trailers of a call that raised.
        """
        meant = told(error)
        if meant.reason == ENGINE_DEAD:
            self._die(meant)
        details = f"{meant.reason}: {meant.message}"[:DETAILS_CHARACTERS_MAX]
        status = to_status(meant)
        status.message = details
        context.set_code(meant.code)
        context.set_details(details)
        context.set_trailing_metadata([(STATUS_DETAILS, status.SerializeToString())])

    def _die(self, error: PenstockError) -> None:
        """Serve starts another process in place of one that is gone, faster than of an ill one."""
        if not self._healthy:
            return
        self._healthy = False
        logger.error("this replica ends: %s", error)
        asyncio.get_running_loop().call_later(EXIT_SECONDS, self._leave, 1)


def build(args: dict[str, Any]) -> Any:
    """The application of one model; Serve imports and calls it. `args`: a `ReplicaSettings`."""
    from ray import serve

    model = ReplicaSettings.model_validate(args)
    deployment: Any = serve.deployment(
        Replica,
        name=DEPLOYMENT,
        num_replicas=model.replicas,
        # Admission is the replica's own, in choices; Serve's must never be the one that refuses.
        max_ongoing_requests=2 * (model.slots + model.queue_limit) + CALLS_BESIDE_GENERATION,
        max_queued_requests=CALLS_BESIDE_GENERATION,
        ray_actor_options={"num_cpus": model.cpus, "num_gpus": model.gpus},
        health_check_period_s=HEALTH_PERIOD_SECONDS,
        health_check_timeout_s=HEALTH_TIMEOUT_SECONDS,
        graceful_shutdown_timeout_s=model.drain_seconds,
    )
    return deployment.bind(args)
