"""Reads kept traces, from any process of the machine; for `penstock trace`."""

import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from penstock.traces.model import Span, Trace
from penstock.traces.store import FILE, StoreError

POLL_SECONDS: Final = 0.1

COMPLETE_SECONDS: Final = 1.0
"""After its end a trace has all its spans: each service sends its own at least twice a second."""

_TRACE_ID = re.compile(r"[0-9a-f]{32}\Z")
_decode = msgspec.json.Decoder(Span).decode


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of the list that `penstock trace` shows without an id."""

    request_id: str
    trace_id: str


def load(
    folder: Path,
    wanted: str,
    *,
    wait_seconds: float = 0.0,
    sleep: Callable[[float], None] = time.sleep,
    now_unix_ns: Callable[[], int] = time.time_ns,
) -> Trace | None:
    """The trace with this trace id, or the part of one that belongs to this request id.

    `wait_seconds`: how long to look for it, as spans come in up to a second after the answer. With
    it, a trace that ended less than a second ago is read again when all its spans can be there.

    Raises:
        StoreError: there is no store in the folder, or it cannot be read.
    """
    wanted = wanted.strip()
    until = time.monotonic() + wait_seconds
    while (found := _load(folder, wanted)) is None and time.monotonic() < until:
        sleep(POLL_SECONDS)
    if found is None or wait_seconds == 0:
        return found
    # The services' spans come apart from the router's: a trace that is this young may lack some.
    age_seconds = now_unix_ns() / 1e9 - max(s.end_unix_ns for s in found.spans) / 1e9
    if 0 <= age_seconds < COMPLETE_SECONDS:
        sleep(COMPLETE_SECONDS - age_seconds)
        return _load(folder, wanted)
    return found


def latest(folder: Path, limit: int = 20) -> list[Entry]:
    """The last requests, newest first.

    Raises:
        StoreError: as `load`.
    """
    rows = _query(
        folder, "SELECT request_id, trace_id FROM requests ORDER BY number DESC LIMIT ?", limit
    )
    return [Entry(request_id, trace_id) for request_id, trace_id in rows]


def _load(folder: Path, wanted: str) -> Trace | None:
    trace_id = wanted.lower().replace("-", "")
    if _TRACE_ID.match(trace_id):
        return _trace(folder, trace_id)
    rows = _query(folder, "SELECT trace_id FROM requests WHERE request_id = ?", wanted)
    trace = _trace(folder, rows[0][0]) if rows else None
    return trace.of_request(wanted) if trace else None


def _trace(folder: Path, trace_id: str) -> Trace | None:
    rows = _query(folder, "SELECT body FROM spans WHERE trace_id = ?", trace_id)
    return Trace.of(trace_id, (_decode(body) for (body,) in rows)) if rows else None


def _query(folder: Path, sql: str, *values: str | int) -> list[tuple[Any, ...]]:
    path = folder / FILE
    if not path.exists():
        raise StoreError(f"no traces are kept in {folder}: start Penstock with `make up`")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(sql, values).fetchall()
    except sqlite3.Error as error:
        raise StoreError(f"the traces in {folder} cannot be read: {error}") from None
