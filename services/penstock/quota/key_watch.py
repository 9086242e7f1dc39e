"""Changed keys, as PostgreSQL's NOTIFY tells them, to every router that watches."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import asyncpg

from penstock.core import errors, postgres

logger = logging.getLogger(__name__)

CHANNEL = "penstock_keys"
SIGN_OF_LIFE_SECONDS = 0.5
"""Twice within the second that the contract promises."""
PING_TIMEOUT_SECONDS = 1.0
RECONNECT_SECONDS = 0.25
WATCHER_HASHES_MAX = 100_000
"""Unread by one router: then its stream ends, and it asks again for every key."""


class KeyWatch:
    """One listening connection.

    While it is away no stream lives: a router must not take silence for "nothing changed".
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._listening = False
        self._watchers: set[_Watcher] = set()

    def end_streams(self) -> None:
        """Every watching router asks elsewhere."""
        self._listening = False
        for watcher in self._watchers:
            watcher.end()

    async def run(self) -> None:
        """Runs for ever: listens, proves by a query that the connection lives, reconnects."""
        while True:
            try:
                await self._listen()
            except Exception as error:
                if not postgres.is_outage(error):
                    logger.exception("watching keys failed")
            finally:
                self.end_streams()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def changes(self) -> AsyncIterator[list[bytes]]:
        """Hashes of changed keys; an empty list is a sign of life.

        Raises:
            Unavailable: changes may have been missed: ask again for every key, then watch again.
        """
        watcher = _Watcher()
        if not self._listening:
            watcher.end()
        self._watchers.add(watcher)
        try:
            while True:
                yield await watcher.next()
        finally:
            self._watchers.discard(watcher)

    async def _listen(self) -> None:
        connection = await asyncpg.connect(
            self._dsn,
            timeout=postgres.CONNECT_TIMEOUT_SECONDS,
            server_settings={"application_name": "penstock-quota-watch"},
        )
        try:
            await connection.add_listener(CHANNEL, self._on_notify)
            self._listening = True
            while True:
                await connection.execute("SELECT 1", timeout=PING_TIMEOUT_SECONDS)
                for watcher in self._watchers:
                    watcher.tell(None)
                await asyncio.sleep(SIGN_OF_LIFE_SECONDS)
        finally:
            with suppress(Exception):
                connection.terminate()

    def _on_notify(self, *notification: object) -> None:
        changed = bytes.fromhex(str(notification[3]))
        for watcher in self._watchers:
            watcher.tell(changed)


class _Watcher:
    def __init__(self) -> None:
        self._changed: list[bytes] = []
        self._ended = False
        self._wake = asyncio.Event()

    def tell(self, changed: bytes | None) -> None:
        if changed is not None:
            self._changed.append(changed)
        self._ended = self._ended or len(self._changed) > WATCHER_HASHES_MAX
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def next(self) -> list[bytes]:
        await self._wake.wait()
        self._wake.clear()
        if self._ended:
            raise errors.Unavailable(
                "changes of keys cannot be watched now: its database does not answer",
                reason="LEDGER_UNAVAILABLE",
                retry_after_seconds=RECONNECT_SECONDS,
            )
        changed, self._changed = self._changed, []
        return changed
