"""The object graph of one quota process, and its life."""

import asyncio
import logging
from contextlib import suppress

import grpc

from penstock.core import errors
from penstock.core.clock import Clock, SystemClock
from penstock.core.health import Health
from penstock.core.server import DRAIN_SECONDS, Server
from penstock.core.telemetry import Telemetry
from penstock.core.telemetry_server import TraceInterceptor
from penstock.quota.admin_service import AdminParts, AdminService
from penstock.quota.alerts.parts import alerts_of
from penstock.quota.balances import Balances
from penstock.quota.batcher import BATCHES_MAX, Batcher
from penstock.quota.config import QuotaConfig
from penstock.quota.entries import Entries
from penstock.quota.key_watch import KeyWatch
from penstock.quota.reconcile.admin import ReconcileAdmin
from penstock.quota.service import QuotaService
from penstock.quota.store.account_store import AccountStore
from penstock.quota.store.adjust_store import AdjustStore
from penstock.quota.store.balance_store import BalanceStore
from penstock.quota.store.database import Database
from penstock.quota.store.entry_store import EntryStore
from penstock.quota.store.ledger_store import LedgerStore
from penstock.quota.sweeper import sweep_for_ever
from penstock.quota.v1 import admin_pb2, admin_pb2_grpc, quota_pb2, quota_pb2_grpc

logger = logging.getLogger(__name__)

DATABASE = "database"
SERVING = "serving"
DATABASE_CHECK_SECONDS = 1.0
"""How long a lost or found database may go unnoticed by health; calls notice at once."""


class Quota:
    """Both ports over one database. `start`, then `stop`."""

    def __init__(self, config: QuotaConfig, telemetry: Telemetry | None = None) -> None:
        self._config = config
        self._health = Health([DATABASE, SERVING])
        self._telemetry = telemetry
        self._clock: Clock = SystemClock()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listens. It is healthy once PostgreSQL answers with the schema of this program."""
        config = self._config
        self._database = await Database.open(config.dsn)
        self._ledger = ledger = LedgerStore(self._database)
        accounts = AccountStore(self._database)
        self._watch = watch = KeyWatch(config.dsn)
        self._alerts, self._alerts_admin = alerts_of(
            config.alerts, self._database, self._clock, self._telemetry
        )
        self._batcher = Batcher(ledger, self._clock)
        balances = Balances(BalanceStore(self._database))
        self._service = quota = QuotaService(
            self._batcher, ledger, accounts, watch, balances, Entries(EntryStore(self._database))
        )
        reconcile = ReconcileAdmin(
            self._database, self._batcher, ledger, AdjustStore(self._database)
        )
        admin = AdminService(
            AdminParts.over(self._database, balances, self._alerts_admin, reconcile)
        )

        def add_quota(server: grpc.aio.Server) -> None:
            quota_pb2_grpc.add_QuotaServiceServicer_to_server(quota, server)

        def add_admin(server: grpc.aio.Server) -> None:
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)

        interceptors = [TraceInterceptor(self._telemetry)] if self._telemetry else []
        self.server = Server(
            listen=config.listen,
            add=add_quota,
            services=[quota_pb2.DESCRIPTOR.services_by_name["QuotaService"].full_name],
            health=self._health,
            token=config.service_token,
            interceptors=interceptors,
        )
        self.admin_server = Server(
            listen=config.admin_listen,
            add=add_admin,
            services=[admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name],
            health=self._health,
            token=config.admin_token,
            interceptors=interceptors,
        )
        await self.server.start()
        await self.admin_server.start()
        await self._health.set(SERVING, ok=True)
        self._alerts.start()
        self._tasks = [
            asyncio.create_task(self._check_database()),
            asyncio.create_task(watch.run()),
            asyncio.create_task(sweep_for_ever(ledger)),
        ]

    async def stop(self, grace_seconds: float = DRAIN_SECONDS) -> None:
        """Unhealthy at once; calls in flight end; what was queued is applied; then it closes."""
        await self._health.set(SERVING, ok=False)
        self._service.drain()
        self._watch.end_streams()
        await asyncio.gather(
            self.server.stop(grace_seconds),
            self.admin_server.stop(grace_seconds),
            self._alerts.stop(),
        )
        await self._alerts.aclose()
        await self._batcher.drain()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self._database.close()

    async def _check(self) -> bool:
        try:
            ok = await self._database.is_current()
            if ok and self._database.connections < BATCHES_MAX:
                with suppress(errors.Unavailable):  # it can be asked all the same
                    await self._ledger.warm(BATCHES_MAX)
        except Exception:  # a check that ended would never find the database again
            logger.exception("the ledger's database cannot be used")
            return False
        return ok

    async def _check_database(self) -> None:
        was: bool | None = None
        while True:
            ok = await self._check()
            if ok is not was:
                logger.info("the ledger's database is %s", "ready" if ok else "not ready")
                await self._health.set(DATABASE, ok=ok)
                was = ok
            await asyncio.sleep(DATABASE_CHECK_SECONDS)
