"""What `penstock up` shows: on a terminal a live table, elsewhere a line an event."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import indent

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from penstock.cli.child import Child, Service

REFRESHES_PER_SECOND = 8
DETAIL_CHARS_MAX = 60

_COLOURS = {"waiting": "dim", "starting": "yellow", "ready": "green", "died": "red"}


@dataclass(slots=True)
class Row:
    """One service's line."""

    service: Service
    phase: str = "waiting"
    since: float = 0.0
    took: float | None = None
    needs: tuple[str, ...] = ()
    child: Child | None = None


class Screen:
    """A `supervisor.Watcher` that shows what it is told. `close` once all are ready, or failed."""

    def __init__(self, console: Console, services: Sequence[Service]) -> None:
        now = time.monotonic()
        self._console = console
        self._rows = {s.name: Row(s, since=now) for s in services}
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._table,
                console=console,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def close(self) -> None:
        """Ends the live table; its last state stays as lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            for row in self._rows.values():
                self._console.print(f"  {_line(row)}")

    def summary(self) -> str:
        """Whom it waits for, and for how long: for a plain log, now and then."""
        now = time.monotonic()
        open_rows = [row for row in self._rows.values() if row.phase != "ready"]
        parts = []
        for row in open_rows:
            detail = f": {_detail(row)}" if _detail(row) else ""
            parts.append(f"{row.service.name} ({row.phase}, {now - row.since:.0f} s{detail})")
        return "still waiting for " + "; ".join(parts)

    @property
    def is_live(self) -> bool:
        return self._live is not None

    def waiting(self, service: Service, for_names: Sequence[str]) -> None:
        self._rows[service.name].needs = tuple(for_names)

    def starting(self, service: Service, child: Child) -> None:
        row = self._rows[service.name]
        row.phase, row.child, row.since = "starting", child, time.monotonic()

    def ready(self, service: Service) -> None:
        row = self._rows[service.name]
        again = row.took is not None
        row.phase, row.took = "ready", time.monotonic() - row.since
        if again:
            self._console.print(f"  [green]{service.name} is back[/] after {row.took:.1f} s")
        elif self._live is None:
            self._console.print(f"  {_line(row)}")

    def died(self, service: Service, how: str, words: Sequence[str], again_in: float) -> None:
        self._rows[service.name].phase = "died"
        self._console.print(
            f"  [red]{service.name} ({escape(service.what)}) {escape(how)}[/]; "
            f"it is started again in {again_in:g} s." + (" Its last words:" if words else "")
        )
        for line in words:
            self._console.print(indent(escape(line), "    "), style="dim")

    def stopping(self, service: Service) -> None:
        self._console.print(f"  stopping {service.name} …", style="dim")

    def stopped(self, service: Service, *, killed: bool) -> None:
        if killed:
            self._console.print(f"  [yellow]{service.name} did not stop in time: killed[/]")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for row in self._rows.values():
            colour = _COLOURS[row.phase]
            if row.phase == "starting":
                mark: Spinner | Text = Spinner("dots", style=colour)
            else:
                mark = Text({"ready": "✓", "died": "✗"}.get(row.phase, "·"), style=colour)
            elapsed = row.took if row.phase == "ready" else time.monotonic() - row.since
            table.add_row(
                mark,
                Text(row.service.name, style=colour),
                Text(f"{elapsed:.1f} s", style="dim"),
                Text(_detail(row) or row.service.what, style="dim"),
            )
        return table


def _line(row: Row) -> str:
    if row.phase == "ready":
        return (
            f"[green]✓[/] {row.service.name:<9} {row.took or 0:5.1f} s  {escape(row.service.what)}"
        )
    return f"[yellow]·[/] {row.service.name:<9} {row.phase}"


def _detail(row: Row) -> str:
    if row.phase == "waiting" and row.needs:
        return "waits for " + ", ".join(row.needs)
    if row.phase == "starting" and row.child is not None:
        return row.child.progress()[:DETAIL_CHARS_MAX]
    return ""
