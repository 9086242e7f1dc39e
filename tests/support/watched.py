"""A live catalogue whose changes and faults can be awaited."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from penstock.core.catalogue import Catalogue
from penstock.core.config import ConfigError, LiveCatalogue

WAIT_SECONDS = 20
"""A change is seen within a tenth of a second; the machine may be busy."""


class Watched:
    """Of a file at `path`. `taker` stands for the part that takes a change over."""

    def __init__(self, path: Path, live: LiveCatalogue, taker: Callable[[Catalogue], None]) -> None:
        self.path = path
        self.live = live
        self._taker = taker
        self._changed: asyncio.Queue[Catalogue] = asyncio.Queue()
        self._faulty: asyncio.Queue[list[str]] = asyncio.Queue()

    def write(self, n_max: object) -> None:
        self.path.write_text(f"version: 1\nlimits: {{n_max: {n_max}}}\n")

    async def taken(self) -> int:
        """The next change's `n_max`."""
        return (await asyncio.wait_for(self._changed.get(), WAIT_SECONDS)).limits.n_max

    async def refused(self) -> list[str]:
        """The next fault's lines."""
        return await asyncio.wait_for(self._faulty.get(), WAIT_SECONDS)

    async def run(self) -> None:
        await self.live.watch(self._take, self._refuse)

    def _take(self, catalogue: Catalogue) -> None:
        self._taker(catalogue)
        self._changed.put_nowait(catalogue)

    def _refuse(self, error: ConfigError) -> None:
        self._faulty.put_nowait(error.faults)


@asynccontextmanager
async def watching(
    path: Path, live: LiveCatalogue, taker: Callable[[Catalogue], None] = lambda _: None
) -> AsyncIterator[Watched]:
    found = Watched(path, live, taker)
    running = asyncio.create_task(found.run())
    yield found
    assert not running.done()
    running.cancel()
