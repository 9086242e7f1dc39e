"""The last traces of one machine: an OTLP receiver that keeps them, and their waterfall.

`penstock up` runs `python -m penstock.traces` first and stops it last, with PENSTOCK_TRACES_STORE
and PENSTOCK_TRACES_LISTEN; the other services' OTEL_EXPORTER_OTLP_… name it as their collector.
Its own are those of the user's environment: where they name a collector, it passes everything on.

`penstock trace ID`:  trace = load(folder, id, wait_seconds=2); console.print(render(trace))
`--json`:             trace.to_dict()
`penstock trace`:     latest(folder); trouble(folder)
"""

from penstock.traces.model import Span, SpanEvent, Trace
from penstock.traces.reader import Entry, latest, load, trouble
from penstock.traces.store import StoreError
from penstock.traces.waterfall import render

__all__ = [
    "Entry",
    "Span",
    "SpanEvent",
    "StoreError",
    "Trace",
    "latest",
    "load",
    "render",
    "trouble",
]
