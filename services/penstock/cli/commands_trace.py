"""`penstock trace`: a request's way through the parts, as a waterfall."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from penstock.cli import admin
from penstock.cli.app import (
    Json,
    app,
    clear_faults,
    err,
    examples,
    has_width,
    not_shown,
    out,
    print_json,
    print_table,
    print_wide,
    state_of,
)
from penstock.cli.errors import CliError
from penstock.cli.tables import plain
from penstock.core.money import format_usd
from penstock.traces import StoreError, latest, load, render, trouble

WAIT_SECONDS = 3.0
"""Spans come in up to a second after the answer."""

WIDE = 110
"""With so many columns a waterfall has all of its own."""

NARROW = 72
"""With fewer, its times would be cut."""

LIST_MAX = 20

REQUEST = "req_"
"""What every request's id begins with."""


@app.command(epilog=examples("penstock trace", "penstock trace req_0198c0de --json"))
@clear_faults
def trace(
    context: typer.Context,
    wanted: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="Trace id or request id, with its req_ or not; none: list the last.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one request: who did what, when, for how long, and what it cost."""
    state = state_of(context)
    folder = Path(admin.settings(state).get(admin.TRACES) or state.traces)
    if told := trouble(folder):
        err.print(Text(told, style="yellow"))
    try:
        if wanted is None:
            _list(folder, as_json=as_json)
            return
        found = load(folder, _full(folder, wanted), wait_seconds=WAIT_SECONDS)
    except StoreError as error:
        raise CliError(str(error)) from None
    if found is None:
        raise CliError(
            f"no trace or request {wanted!r} is kept",
            remedy="`penstock trace` lists the last ones; older ones are let go.",
        )
    if as_json:
        print_json(found.to_dict())
    elif has_width() and out.width < WIDE:
        print_wide(render(found, narrow=True), NARROW)
        out.print(not_shown(["service", "amounts in nano-USD"]), style="dim")
    else:
        print_wide(render(found), WIDE)


def _full(folder: Path, wanted: str) -> str:
    """With the `req_` that a request's id lacks, where it is one."""
    if load(folder, wanted) is None and load(folder, REQUEST + wanted) is not None:
        return REQUEST + wanted
    return wanted


def _list(folder: Path, *, as_json: bool) -> None:
    entries = latest(folder, LIST_MAX)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        out.print("No request yet.")
        return
    columns = ("at", "request", "asked for", "answered by", "why", "cache", "cost USD", "took")
    drops = ("cache", "took", "why", "asked for", "answered by", "outcome")
    table = plain(
        "", *columns, "outcome", right=("cost USD", "took"), drops=drops, whole=("request",)
    )
    for entry in entries:
        at = datetime.fromtimestamp(entry.at_unix_ns / 1e9, UTC)
        table.add_row(
            f"{at:%m-%d %H:%M:%S}",
            Text(entry.request_id),
            Text(entry.model),
            Text(entry.answered_by),
            entry.reason,
            entry.cache,
            format_usd(entry.cost_nano_usd),
            f"{entry.duration_ms:.0f} ms",
            Text(entry.outcome, style="" if entry.outcome == "ok" else "red"),
        )
    print_table(table)
    out.print("Times are UTC. `penstock trace REQUEST` shows one.", style="dim")
