"""The request flow with everything around it in memory."""

from penstock.core.catalogue import LedgerSettings
from penstock.core.clock import SystemClock
from penstock.core.deadline import Deadline
from penstock.core.metrics import Metrics
from penstock.core.telemetry import Telemetry
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.backends.base import PoolView, ProviderView, Views
from penstock.router.events import Event
from penstock.router.explain import explain
from penstock.router.flow import Flow
from penstock.router.ports import Ledger
from penstock.router.request import Request
from penstock.router.v1.router_pb2 import ExplainRouteResponse
from support.chat import catalogue, chat
from support.ports import (
    FixedLandscape,
    MemoryAnswers,
    MemoryLedger,
    Script,
    ScriptedBackend,
    text_answer,
    waiting,
)


class House:
    """A flow with everything around it in memory."""

    def __init__(
        self,
        local: Script = (),
        paid: Script = (),
        limit_nano_usd: int = 10**15,
        slice_tokens: int = 4096,
        ledger: Ledger | None = None,
    ) -> None:
        self.ledger = MemoryLedger(limit_nano_usd)
        self.told: Ledger = ledger or self.ledger
        """Whoever is asked for money: `ledger`, where one is given."""
        self.answers = MemoryAnswers()
        self.local = ScriptedBackend(local or text_answer())
        self.paid = ScriptedBackend(paid or text_answer())
        pool = PoolView(ready_replicas=1, free_slots=2, queue_room=2)
        self.views = Views({"small": pool}, {"acme": ProviderView("acme", enabled=True)})
        self.metrics = Metrics()
        self.waiting = waiting()
        settings = LedgerSettings(slice_tokens=slice_tokens)
        self.catalogue = catalogue().model_copy(update={"ledger": settings})
        self.landscape = FixedLandscape(self.views)
        self.flow = Flow(
            catalogue=lambda: self.catalogue,
            ledger=self.told,
            answers=self.answers,
            landscape=self.landscape,
            backends=lambda name: self.local if name == "local" else self.paid,
            new_trace=Telemetry("test").request,
            metrics=self.metrics,
            clock=SystemClock(),
            waiting=self.waiting,
        )

    async def run(self, the_request: Request) -> list[Event]:
        return [event async for event in self.flow.run(the_request)]

    async def explain(self, the_request: Request) -> ExplainRouteResponse:
        return await explain(
            the_request,
            catalogue=self.catalogue,
            ledger=self.told,
            answers=self.answers,
            landscape=self.landscape,
        )


def request(
    model: str = "auto",
    *,
    fail_open: bool = False,
    counts_requests: bool = False,
    stream: bool = True,
    seconds: float = 60,
    key_id: str = "k",
    **fields: object,
) -> Request:
    return Request(
        request_id="req_1",
        principal=Principal(
            key_id=key_id,
            org_id="o",
            fail_open_local=fail_open,
            counts_requests=counts_requests,
        ),
        model=model,
        input=chat(**fields),
        deadline=Deadline.after(seconds),
        stream=stream,
    )
