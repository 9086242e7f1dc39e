"""A trace as a waterfall in the terminal: who did what, when, for how long, and what it cost."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from penstock.core import semconv
from penstock.core.money import format_usd
from penstock.traces.model import Span, Trace, Value

BAR_CELLS: Final = 32
"""Wide enough to tell a millisecond from a second, narrow enough for 110 columns in all."""

NARROW_BAR_CELLS: Final = 12
SPAN_CELLS_MAX: Final = 44
NARROW_SPAN_CELLS_MAX: Final = 32
"""What is noted of a span has 20 of 80 columns then."""

ROWS_MAX: Final = 200
"""A terminal's scrollback is not a database; `--json` has everything."""

_PACKAGE: Final = re.compile(r"^[\w.]+\.(?=\w+/\w+$)")
"""Of a gRPC method: its service's own name, which stays, tells enough."""

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_COLOURS: Final = {
    "penstock-router": "cyan",
    "penstock-quota": "yellow",
    "penstock-cache": "green",
    "penstock-local": "magenta",
}


def render(trace: Trace, *, narrow: bool = False) -> RenderableType:
    """A heading for each request, the waterfall, and what failed.

    Narrow, for 80 columns: without the services, whose colours the spans have, shorter bars,
    amounts in USD only.
    """
    requests = [span for span in trace.spans if span.is_request]
    return Group(
        Text.from_markup(f"trace [bold]{trace.trace_id}[/]"),
        *(_heading(span, narrow=narrow) for span in requests),
        _table(trace, narrow=narrow),
        *_failures(trace),
    )


def _heading(span: Span, *, narrow: bool) -> Text:
    told = span.attributes
    took = _milliseconds(span.duration_ms)
    lines = [f"[bold]{escape(span.request_id)}[/]  {escape(span.name)}  {took}"]
    who = "/".join(
        str(told[key]) for key in (semconv.PROVIDER, semconv.RESPONSE_MODEL) if told.get(key)
    )
    why = [
        f"answered by [bold]{escape(who)}[/]" if who else "not answered",
        f"reason {escape(str(told[semconv.REASON]))}" if told.get(semconv.REASON) else "",
        f"cache {escape(str(told[semconv.CACHE]))}" if told.get(semconv.CACHE) else "",
        "[red]ended at a budget[/]" if span.ended_by == semconv.BUDGET else "",
    ]
    lines.append("  " + " · ".join(filter(None, why)))
    money = [
        _money(label, told.get(key), narrow=narrow)
        for label, key in (
            ("cost", semconv.COST_NANO_USD),
            ("baseline", semconv.BASELINE_COST_NANO_USD),
            ("saved", semconv.SAVED_NANO_USD),
        )
    ]
    if any(money):
        lines.append("  " + " · ".join(filter(None, money)))
    if not told.get(semconv.DETAILED):
        lines.append("  [dim]one span and its events: more requests came than are detailed[/]")
    return Text.from_markup("\n".join(lines))


def _money(label: str, value: Value | None, *, narrow: bool) -> str:
    if not isinstance(value, int):
        return ""
    exactly = "" if narrow else f" ({value} nano-USD)"
    return f"{label} [bold]{format_usd(value)} USD[/]{exactly}"


def _table(trace: Trace, *, narrow: bool) -> Table:
    cells = NARROW_BAR_CELLS if narrow else BAR_CELLS
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    table.add_column(
        "span", no_wrap=True, max_width=NARROW_SPAN_CELLS_MAX if narrow else SPAN_CELLS_MAX
    )
    if not narrow:
        table.add_column("service", no_wrap=True)
    table.add_column("time", no_wrap=True, width=cells)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in _rows(trace, cells):
        if narrow:
            del row[1]
        table.add_row(*row)
    return table


def _rows(trace: Trace, cells: int) -> Iterator[list[RenderableType]]:
    """Span, service, bar, how long it took, what there is to note."""
    start = min((s.start_unix_ns for s in trace.spans), default=0)
    end = max((s.end_unix_ns for s in trace.spans), default=0)
    for row, (depth, span) in enumerate(trace.walk()):
        if row == ROWS_MAX:
            yield [f"… {len(trace.spans) - row} more spans", "", "", "", "see --json"]
            return
        colour = "red" if span.failed else _COLOURS.get(span.service, "blue")
        yield [
            Text("  " * depth + _PACKAGE.sub("", span.name), style=colour),
            Text(span.service.removeprefix("penstock-"), style="dim"),
            Text(bar(span.start_unix_ns, span.end_unix_ns, start, end, cells), style=colour),
            _milliseconds(span.duration_ms),
            Text(_note(span.attributes), style="dim"),
        ]
        for event in span.events:
            took = event.attributes.get(semconv.DURATION_MS)
            took_ms = float(took) if isinstance(took, int | float) else 0.0
            began = event.at_unix_ns - round(took_ms * 1e6)
            yield [
                Text(f"{'  ' * (depth + 1)}· {event.name}"),
                "",
                Text(bar(began, event.at_unix_ns, start, end, cells), style="dim"),
                _milliseconds(took_ms) if took is not None else "",
                Text(_note(event.attributes), style="dim"),
            ]


def bar(began: int, ended: int, start: int, end: int, cells: int = BAR_CELLS) -> str:
    """`cells` characters: blank before `began`, filled until `ended`; never quite empty."""
    whole = max(1, end - start)
    eighths = cells * 8
    first = min(max(0, (began - start) * eighths // whole), eighths - 1)
    last = min(max(first + 1, -(-(ended - start) * eighths // whole)), eighths)
    text = ""
    for cell in range(cells):
        low, high = max(first, cell * 8), min(last, cell * 8 + 8)
        filled = max(0, high - low)
        # Blocks grow from the left: a cell that is filled from its middle is shown as full.
        text += _EIGHTHS[filled if low == cell * 8 else (8 if filled else 0)]
    return text


def _note(told: Mapping[str, Value]) -> str:
    notes = []
    for key, label in (
        (semconv.REASON, ""),
        (semconv.CACHE, "cache "),
        (semconv.ERROR_TYPE, ""),
    ):
        if told.get(key):
            notes.append(f"{label}{told[key]}")
    for key in (semconv.ATTEMPT_COST_NANO_USD, semconv.HELD_NANO_USD):
        value = told.get(key)
        if isinstance(value, int):
            held = "held " if key == semconv.HELD_NANO_USD else ""
            notes.append(f"{held}{format_usd(value)} USD")
    if semconv.OUTPUT_TOKENS in told:
        tokens = f"{told.get(semconv.INPUT_TOKENS, 0)}+{told[semconv.OUTPUT_TOKENS]} tokens"
        notes.append(tokens + (" (estimated)" if told.get(semconv.ESTIMATED) else ""))
    return " · ".join(notes)


def _failures(trace: Trace) -> list[Text]:
    return [
        Text(
            f"{span.name} ({span.service.removeprefix('penstock-')}): {span.status_message}", "red"
        )
        for span in trace.spans
        if span.failed and span.status_message
    ][:ROWS_MAX]


def _milliseconds(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.1f} s"
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"
