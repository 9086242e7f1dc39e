"""Both fronts of a router on free ports, over the real flow with everything around it in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from penstock.core.catalogue import Catalogue
from penstock.core.channel import connect
from penstock.core.clock import Clock, SystemClock
from penstock.core.health import Health
from penstock.core.metrics import Metrics
from penstock.core.telemetry import Telemetry
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router import explain, listing
from penstock.router.backends.base import PoolView, ProviderView, Views
from penstock.router.flow import Flow
from penstock.router.front import Front
from penstock.router.fronts import ACCEPTING, HTTP, Fronts
from penstock.router.principal import Principals
from penstock.router.request import Request
from penstock.router.running import Registry
from penstock.router.v1.router_pb2 import ExplainRouteResponse, Model
from penstock.router.v1.router_pb2_grpc import RouterServiceStub
from support.chat import catalogue
from support.ports import (
    FixedLandscape,
    MemoryAnswers,
    MemoryLedger,
    Script,
    ScriptedBackend,
    text_answer,
    waiting,
)
from support.quota_server import KEY, METADATA, FakeQuota
from support.wait import until


class FrontHouse:
    def __init__(
        self, script: Script = (), limit_nano_usd: int = 10**15, clock: Clock | None = None
    ) -> None:
        self.quota = FakeQuota()
        self.quota.put()
        self.credential = METADATA
        """By which it asks quota."""
        self.ledger = MemoryLedger(limit_nano_usd)
        self.answers = MemoryAnswers()
        self.local = ScriptedBackend(script or text_answer())
        self.paid = ScriptedBackend(text_answer("paid"))
        pool = PoolView(ready_replicas=1, free_slots=2, queue_room=2)
        self.views = Views({"small": pool}, {"acme": ProviderView("acme", enabled=True)})
        self.catalogue: Catalogue = catalogue()
        self.clock = clock or SystemClock()
        """By which deadlines pass."""
        self.registry = Registry()
        self.health = Health([HTTP, ACCEPTING])

    async def start(self) -> None:
        await self.quota.start()
        self._to_quota = self.quota.channel()
        self.principals = Principals(self._to_quota, self.credential, SystemClock())
        self._watch = asyncio.create_task(self.principals.watch())
        landscape = FixedLandscape(self.views)
        flow = Flow(
            catalogue=lambda: self.catalogue,
            ledger=self.ledger,
            answers=self.answers,
            landscape=landscape,
            backends=lambda name: self.local if name == "local" else self.paid,
            new_trace=Telemetry("test").request,
            metrics=Metrics(),
            clock=SystemClock(),
            waiting=waiting(),
        )

        async def explained(request: Request) -> ExplainRouteResponse:
            return await explain.explain(
                request,
                catalogue=self.catalogue,
                ledger=self.ledger,
                answers=self.answers,
                landscape=landscape,
            )

        def usable(principal: Principal) -> list[Model]:
            return listing.usable_models(self.catalogue, principal.allowed_models, self.views)

        front = Front(
            principals=self.principals,
            catalogue=lambda: self.catalogue,
            registry=self.registry,
            run=flow.run,
            explain=explained,
            models=usable,
            clock=self.clock,
        )
        self.fronts = Fronts(
            front, self.health, grpc_listen="127.0.0.1:0", http_listen="127.0.0.1:0"
        )
        await self.fronts.start()
        self.channel = connect(self.fronts.grpc.address)
        self.stub = RouterServiceStub(self.channel)
        self.url = f"http://{self.fronts.http.address}"

    async def stop(self) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self.channel.close()
        await self.fronts.drain(0)
        await self._to_quota.close()
        await self.quota.stop()

    async def resolved(self, count: int = 1) -> list[str]:
        """Outcomes of the attempts, once so many are resolved and nothing is held or under way."""
        await until(
            lambda: (
                len(self.ledger.settled) + len(self.ledger.voided) >= count and not self.under_way
            )
        )
        return [s.outcome for s in self.ledger.settled] + [v.reason for v in self.ledger.voided]

    @property
    def under_way(self) -> bool:
        return bool(self.ledger.held) or len(self.registry) > 0


def metadata(key: str = KEY, **more: str) -> tuple[tuple[str, str], ...]:
    pairs = {"authorization": f"Bearer {key}"} | more
    return tuple((name.replace("_", "-"), value) for name, value in pairs.items())


@asynccontextmanager
async def front_house(script: Script = (), **options: Any) -> AsyncIterator[FrontHouse]:
    house = FrontHouse(script, **options)
    await house.start()
    try:
        yield house
    finally:
        await house.stop()


RpcError = grpc.aio.AioRpcError
