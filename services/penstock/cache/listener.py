"""Hears of ended flights, and tells whether PostgreSQL is there with the schema we need."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg

from penstock.cache.flights import Waits
from penstock.cache.store.postgres import CHANNEL, MIGRATIONS
from penstock.core.postgres import (
    CONNECT_TIMEOUT_SECONDS,
    MigrationError,
    is_outage,
    migrate,
    read_migrations,
)

logger = logging.getLogger(__name__)

PING_SECONDS = 2.0
"""Finds a PostgreSQL that hangs, or a host that vanished without a word."""

RETRY_SECONDS = 0.5
"""Between two tries to reach PostgreSQL: it comes back within a second of its own start."""

SetReady = Callable[[bool], Awaitable[None]]


class Listener:
    """Runs for ever: connects, migrates once, listens; over again when the connection is lost."""

    def __init__(self, dsn: str, waits: Waits, ready: SetReady) -> None:
        self._dsn = dsn
        self._waits = waits
        self._ready = ready
        self._migrated = False

    async def run(self) -> None:
        """Raises MigrationError: the schema and this program do not fit."""
        while True:
            try:
                await self._listen()
            except MigrationError:
                raise
            except Exception as error:  # noqa: BLE001
                # Whatever a dying connection raises: what counts is whether the next one works.
                level = logging.WARNING if is_outage(error) else logging.ERROR
                logger.log(level, "PostgreSQL is away (%s)", type(error).__name__)
            await self._ready(False)
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        if not self._migrated:
            for name in await migrate(self._dsn, read_migrations(MIGRATIONS)):
                logger.info("migration %s ran", name)
            self._migrated = True
        connection = await asyncpg.connect(
            self._dsn, timeout=CONNECT_TIMEOUT_SECONDS, command_timeout=CONNECT_TIMEOUT_SECONDS
        )
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(CHANNEL, self._heard)
            # What was announced while nobody listened is not repeated.
            self._waits.look_again()
            await self._ready(True)
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PING_SECONDS):
                        await lost.wait()
                if not lost.is_set():
                    await connection.execute("SELECT 1")
        finally:
            connection.terminate()

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        try:
            self._waits.end(UUID(payload))
        except ValueError:
            logger.warning("a notice on %s is no token", CHANNEL)
