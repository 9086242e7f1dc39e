"""The last traces of one machine: an OTLP receiver that keeps them, and their waterfall.

`penstock up` runs `python -m penstock.traces` first and stops it last, with PENSTOCK_TRACES_STORE
and PENSTOCK_TRACES_LISTEN; other services get OTEL_EXPORTER_OTLP_ENDPOINT=http://<that address>.
Where the user's environment has an endpoint already, it goes to PENSTOCK_TRACES_FORWARD (and its
headers to PENSTOCK_TRACES_FORWARD_HEADERS), and this process passes everything on.

`penstock trace ID`:  trace = load(folder, id, wait_seconds=2); console.print(render(trace))
`--json`:             trace.to_dict()
`penstock trace`:     latest(folder)
"""

from penstock.traces.model import Span, SpanEvent, Trace
from penstock.traces.reader import Entry, latest, load
from penstock.traces.store import StoreError
from penstock.traces.waterfall import render

__all__ = ["Entry", "Span", "SpanEvent", "StoreError", "Trace", "latest", "load", "render"]
