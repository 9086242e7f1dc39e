"""Tiny real processes that behave as told, and a watcher that remembers what happened."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.cli.child import Child, Service
from penstock.cli.readiness import Readiness, ReadyFile

SERVE = """
import pathlib, signal, sys, time
ready, stops = pathlib.Path(sys.argv[1]), {signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, stops)
ready.write_text("ready")
signal.sigwait(stops)
"""
"""Ready at once; ends in order on SIGTERM."""

DIE = "import sys; sys.stderr.write('no more memory\\n'); sys.exit(3)"

SILENT = "import time; time.sleep(600)"
"""Never ready."""

STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("ready")
time.sleep(600)
"""
"""Ready; does not hear SIGTERM."""


def service(
    name: str,
    folder: Path,
    script: str = SERVE,
    *,
    after: tuple[str, ...] = (),
    stop_rank: int = 1,
    start_seconds: float = 20,
    stop_seconds: float = 20,
    readiness: Readiness | None = None,
) -> Service:
    ready = folder / f"{name}.ready"
    return Service(
        name=name,
        what=f"the {name}",
        command=(sys.executable, "-c", script, str(ready)),
        readiness=readiness or ReadyFile(ready),
        ready_file=ready,
        after=after,
        stop_rank=stop_rank,
        start_seconds=start_seconds,
        stop_seconds=stop_seconds,
    )


class Story:
    """A `supervisor.Watcher` that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.children: dict[str, list[Child]] = {}
        self._changed = asyncio.Event()

    def _add(self, event: str) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, event: str, times: int = 1) -> None:
        while self.events.count(event) < times:
            self._changed.clear()
            await self._changed.wait()

    def waiting(self, service: Service, for_names: Sequence[str]) -> None:
        self._add(f"{service.name} waits for {','.join(for_names)}")

    def starting(self, service: Service, child: Child) -> None:
        self.children.setdefault(service.name, []).append(child)
        self._add(f"{service.name} starts")

    def ready(self, service: Service) -> None:
        self._add(f"{service.name} is ready")

    def died(self, service: Service, how: str, words: Sequence[str], again_in: float) -> None:
        self._add(f"{service.name} died: {how}: {'; '.join(words)}")

    def stopping(self, service: Service) -> None:
        self._add(f"{service.name} stops")

    def stopped(self, service: Service, *, killed: bool) -> None:
        self._add(f"{service.name} {'was killed' if killed else 'stopped'}")
