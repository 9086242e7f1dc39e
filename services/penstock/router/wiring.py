"""The object graph of one router process, and its life."""

import asyncio
import logging
from contextlib import suppress

from penstock.core.catalogue import Catalogue
from penstock.core.channel import bearer, connect
from penstock.core.clock import SystemClock
from penstock.core.config import LiveCatalogue
from penstock.core.health import Health
from penstock.core.metrics import Metrics
from penstock.core.server import DRAIN_SECONDS
from penstock.core.telemetry import Telemetry
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router import answers, explain, listing
from penstock.router.answers import CacheAnswers
from penstock.router.backends.local import LocalBackend
from penstock.router.backends.providers import Providers
from penstock.router.config import METRICS_LISTEN, RouterConfig
from penstock.router.flow import Flow
from penstock.router.front import Front
from penstock.router.fronts import ACCEPTING, HTTP, Fronts
from penstock.router.http.metrics import metrics_app
from penstock.router.http.server import HttpServer
from penstock.router.landscape import LiveLandscape
from penstock.router.ledger import QuotaLedger
from penstock.router.pools import Pools
from penstock.router.principal import Principals
from penstock.router.request import Request
from penstock.router.running import Registry
from penstock.router.snapshot_feed import SnapshotFeed
from penstock.router.v1.router_pb2 import ExplainRouteResponse, Model
from penstock.router.waiting import Limits, Waiting

logger = logging.getLogger(__name__)

QUOTA = "quota"
CAPACITY = "capacity"

LEDGER_DRAIN_SECONDS = 8.0
"""For settles that the ledger has not taken yet. With the fronts' drain (20 s, and 5 s to settle
what was cut off), the cache's and the last spans' that is 37 s at most: more than the 30 s that
Kubernetes grants by default."""

CACHE_DRAIN_SECONDS = 1.0
"""An answer that is not stored by then is made again: not worth holding up the stop."""


class Router:
    """`start`, then `stop`."""

    def __init__(self, config: RouterConfig, telemetry: Telemetry) -> None:
        """Reads the catalogue.

        Raises:
            ConfigError: with all faults of the file.
        """
        clock = SystemClock()
        self._config = config
        self.catalogue = LiveCatalogue(config.catalogue_path)
        self.health = Health([QUOTA, CAPACITY, HTTP, ACCEPTING])
        self._telemetry = telemetry
        self._metrics = Metrics()
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listens. It is ready once quota and capacity have spoken for the first time.

        Raises:
            PortInUse: another process listens on one of the ports.
        """
        config, clock = self._config, self._clock
        token = config.service_token
        self._channels = [connect(config.quota_address), connect(config.cache_address)]
        to_quota, to_cache = self._channels
        self._ledger = QuotaLedger(to_quota, token, clock=clock)
        self._answers = CacheAnswers(
            answers.open_stream(to_cache, token), lambda: self._current().cache, clock=clock
        )
        self._waiting = Waiting(self._limits, clock)
        self._count()
        self._pools = Pools(catalogue=self._current, clock=clock)
        self._providers = Providers(
            self._current(), environ=config.environ, clock=clock, stand_in=config.stand_in
        )
        self._landscape = LiveLandscape(
            pools=self._pools,
            local=LocalBackend(pools=self._pools, token=config.router_token, clock=clock),
            providers=self._providers,
        )
        self._principals = Principals(to_quota, (bearer(token),), clock)
        self._feed = SnapshotFeed(
            address=config.capacity_address, token=token, apply=self._pools.apply
        )
        self._flow = self._make_flow()
        self.fronts = Fronts(
            self._make_front(),
            self.health,
            grpc_listen=config.grpc_listen,
            http_listen=config.http_listen,
        )
        await self.fronts.start()
        await self._start_metrics()
        self._ledger.start()
        self._answers.start()
        self._tasks = [
            asyncio.create_task(self._principals.watch()),
            asyncio.create_task(self._feed.run()),
            asyncio.create_task(self.catalogue.watch(self._providers.update)),
            asyncio.create_task(self._set_when(self._principals.heard, QUOTA)),
            asyncio.create_task(self._set_when(self._feed.first, CAPACITY)),
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    def _limits(self) -> Limits:
        catalogue = self._current()
        return Limits(catalogue.ledger.waiting_max, catalogue.routing.wait_margin_ms / 1000)

    def _count(self) -> None:
        """What others know, and the metrics read off them."""
        ledger, metrics = self._ledger, self._metrics
        metrics.unsettled.set_function(lambda: ledger.resolving)
        metrics.limit_waiting.set_function(lambda: self._waiting.count)
        metrics.count_from(
            "ledger_unavailable",
            "Reserves and extensions that the ledger did not answer.",
            lambda: ledger.unavailable_count,
        )
        metrics.count_from(
            "ledger_refused",
            "Settles and voids that the ledger will never take.",
            lambda: ledger.refused_count,
        )
        metrics.count_from(
            "ledger_dropped",
            "Settles and voids that found no place in the queue.",
            lambda: ledger.dropped_count,
        )

    async def _start_metrics(self) -> None:
        self._metrics_port: HttpServer | None = None
        if listen := self._config.metrics_listen:
            app = metrics_app(self._metrics.registry)
            self._metrics_port = HttpServer(listen, app, variable=METRICS_LISTEN)
            await self._metrics_port.start()

    def _current(self) -> Catalogue:
        return self.catalogue.current

    def _make_flow(self) -> Flow:
        return Flow(
            catalogue=self._current,
            ledger=self._ledger,
            answers=self._answers,
            landscape=self._landscape,
            backends=self._landscape.backend,
            new_trace=self._telemetry.request,
            metrics=self._metrics,
            clock=self._clock,
            waiting=self._waiting,
        )

    def _make_front(self) -> Front:
        async def explained(request: Request) -> ExplainRouteResponse:
            return await explain.explain(
                request,
                catalogue=self._current(),
                ledger=self._ledger,
                answers=self._answers,
                landscape=self._landscape,
            )

        def usable(principal: Principal) -> list[Model]:
            return listing.usable_models(
                self._current(), principal.allowed_models, self._landscape.views()
            )

        return Front(
            principals=self._principals,
            catalogue=self._current,
            registry=Registry(),
            run=self._flow.run,
            explain=explained,
            models=usable,
            clock=self._clock,
        )

    async def _set_when(self, event: asyncio.Event, component: str) -> None:
        # Later losses do not unset it: a router without quota or capacity still answers what it
        # can, and taking all routers out at once would make every outage a total one.
        await event.wait()
        logger.info("%s is there", component)
        await self.health.set(component, ok=True)

    async def stop(self, grace_seconds: float = DRAIN_SECONDS) -> None:
        """Accepts nothing new, ends what is under way, settles it, closes everything."""
        await self.fronts.drain(grace_seconds)
        await self._flow.drain()
        left = await self._ledger.drain(LEDGER_DRAIN_SECONDS)
        if left:
            logger.error("%d settlements could not be told to the ledger: holds will expire", left)
        await self._answers.drain(CACHE_DRAIN_SECONDS)
        if self._metrics_port is not None:
            await self._metrics_port.stop()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self._pools.close()
        await self._providers.close()
        for channel in self._channels:
            await channel.close()


def _report(task: "asyncio.Task[None]") -> None:
    """A task that should run for ever and ended is told at once, not at the drain."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("a background task died", exc_info=task.exception())
