"""Starts services in the order of what they need, keeps them running, stops them in order.

A service that dies is started again with back-off. One that dies before it was ever ready, or too
often in a while, ends the whole: a loop of restarts would hide its cause.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import indent
from typing import Protocol

from penstock.cli.child import Child, Service, describe_exit
from penstock.cli.errors import CliError

RESTARTS_MAX = 5
RESTART_WINDOW_SECONDS = 120.0
"""More restarts than RESTARTS_MAX within this end the whole."""

BACKOFF_SECONDS = (0.2, 1.0, 2.0, 5.0, 10.0)
"""Before the first, second, … restart within the window."""


class Watcher(Protocol):
    """Is told what happens; shows it."""

    def waiting(self, service: Service, for_names: Sequence[str]) -> None: ...
    def starting(self, service: Service, child: Child) -> None: ...
    def ready(self, service: Service) -> None: ...
    def died(self, service: Service, how: str, words: Sequence[str], again_in: float) -> None: ...
    def stopping(self, service: Service) -> None: ...
    def stopped(self, service: Service, *, killed: bool) -> None: ...


class Supervisor:
    """The services of one `up`.

    Args:
        log_of: Where a service's output goes.
        on_change: Called when the set of running children changed, to put it on record.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        log_of: Callable[[str], Path],
        watcher: Watcher,
        on_change: Callable[[Sequence[Child]], None] = lambda _: None,
        backoff_seconds: Sequence[float] = BACKOFF_SECONDS,
        restarts_max: int = RESTARTS_MAX,
    ) -> None:
        names = [service.name for service in services]
        assert len(set(names)) == len(names)
        assert all(need in names[:i] for i, s in enumerate(services) for need in s.after)
        self._services = list(services)
        self._log_of = log_of
        self._watcher = watcher
        self._on_change = on_change
        self._backoff_seconds = backoff_seconds
        self._restarts_max = restarts_max
        self._ready = {name: asyncio.Event() for name in names}
        self._children: dict[str, Child] = {}

    async def run(self, stop: asyncio.Event, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Starts all, awaits `on_ready()` when all are ready, and runs until `stop` is set.

        The caller calls `stop` afterwards, whatever happened.

        Raises:
            CliError: a service cannot be started or does not stay up; names it, its exit, its last
                words and what to do.
        """
        keepers = [
            asyncio.create_task(self._keep(service), name=service.name)
            for service in self._services
        ]
        stopping = asyncio.create_task(stop.wait())
        greeting = asyncio.create_task(self._greet(on_ready))
        try:
            pending = {stopping, greeting, *keepers}
            while not stopping.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in (stopping, greeting, *keepers):
                task.cancel()
            await asyncio.gather(stopping, greeting, *keepers, return_exceptions=True)

    async def _greet(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        for event in self._ready.values():
            await event.wait()
        await on_ready()

    async def _keep(self, service: Service) -> None:
        """One service for as long as we run."""
        await self._await_needs(service)
        deaths: deque[float] = deque(maxlen=self._restarts_max + 1)
        while True:
            try:
                child = await self._start(service)
            except OSError as error:
                await self._put_off(service, error)
                continue
            how = await self._until_ready(service, child)
            if how is None:
                self._ready[service.name].set()
                self._watcher.ready(service)
                if service.is_task:
                    return
                how = describe_exit(await child.wait())
            elif not self._ready[service.name].is_set():
                raise _failed(service, how, child, self._log_of(service.name))
            deaths.append(time.monotonic())
            recent = [at for at in deaths if at > deaths[-1] - RESTART_WINDOW_SECONDS]
            if len(recent) > self._restarts_max:
                how += f", {len(recent)} times in {RESTART_WINDOW_SECONDS:.0f} s"
                raise _failed(service, how, child, self._log_of(service.name))
            again_in = self._backoff_seconds[min(len(recent), len(self._backoff_seconds)) - 1]
            self._watcher.died(service, how, child.last_words(), again_in)
            await asyncio.sleep(again_in)

    async def _put_off(self, service: Service, error: OSError) -> None:
        """It could not even be started: the machine's fault (a full disk, no memory), not its own,
        and it may pass.

        Raises:
            CliError: it never was ready: this is the first start.
        """
        where = f": {error.filename}" if error.filename else ""
        why = f"cannot be started: {error.strerror or error}{where}"
        if not self._ready[service.name].is_set():
            raise CliError(
                f"{service.name} {why}",
                remedy="Free some space if the disk is full; else run `make env` to mend the "
                "environment.",
            ) from None
        again_in = self._backoff_seconds[-1]
        self._watcher.died(service, why, (), again_in)
        await asyncio.sleep(again_in)

    async def _await_needs(self, service: Service) -> None:
        needs = list(service.after)
        while needs:
            self._watcher.waiting(service, needs)
            await self._ready[needs[0]].wait()
            needs = [name for name in needs if not self._ready[name].is_set()]

    async def _start(self, service: Service) -> Child:
        child = await Child.start(service, self._log_of(service.name))
        self._children[service.name] = child
        self._on_change(list(self._children.values()))
        self._watcher.starting(service, child)
        return child

    async def _until_ready(self, service: Service, child: Child) -> str | None:
        """None: it is ready. Else why it is not."""
        ready = asyncio.create_task(service.readiness.wait())
        exited = asyncio.create_task(child.wait())
        try:
            await asyncio.wait(
                {ready, exited},
                timeout=service.start_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if exited.done():
                status = exited.result()
                return None if service.is_task and status == 0 else describe_exit(status)
            if ready.done():
                ready.result()
                return None
            await child.stop(_now())
            return f"was not ready within {service.start_seconds:.0f} s"
        finally:
            for task in (ready, exited):
                task.cancel()
            await asyncio.gather(ready, exited, return_exceptions=True)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Ends all children, rank by rank. Safe to call twice."""
        ranked = sorted(self._children.values(), key=lambda c: c.service.stop_rank)
        for _, together in groupby(ranked, key=lambda c: c.service.stop_rank):
            await asyncio.gather(*(self._stop(child, hurry) for child in together))
        self._children.clear()

    async def _stop(self, child: Child, hurry: asyncio.Event) -> None:
        if not child.is_running:
            return
        self._watcher.stopping(child.service)
        ended = await child.stop(hurry)
        self._watcher.stopped(child.service, killed=not ended)


def _now() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


def _failed(service: Service, how: str, child: Child, log: Path) -> CliError:
    words = indent("\n".join(child.last_words()), "  ")
    check = f" {service.check}" if service.check else ""
    with contextlib.suppress(ValueError):
        log = log.relative_to(Path.cwd())
    return CliError(
        f"{service.name} ({service.what}) {how}." + (f" Its last words:\n{words}" if words else ""),
        remedy=f"Its whole log: {log}.{check}",
    )
