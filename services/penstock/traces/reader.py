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

from penstock.core import semconv
from penstock.traces.model import Span, Trace
from penstock.traces.store import FILE, TROUBLE, StoreError

POLL_SECONDS: Final = 0.1

COMPLETE_SECONDS: Final = 1.0
"""After its end a trace has all its spans: each service sends its own at least twice a second."""

_TRACE_ID = re.compile(r"[0-9a-f]{32}\Z")
_decode = msgspec.json.Decoder(Span).decode


@dataclass(frozen=True, slots=True)
class Entry:
    """One request of the list that `penstock trace` shows without an id.

    Attributes:
        model: As it was asked for.
        answered_by: `<provider>/<model>`; "" where nobody did.
        reason, cache: As in the receipt; "" where it did not come that far.
        outcome: "ok", "budget" where the answer ended at one, or the reason of the failure.
    """

    request_id: str
    trace_id: str
    at_unix_ns: int
    duration_ms: float
    model: str
    answered_by: str
    reason: str
    cache: str
    cost_nano_usd: int
    outcome: str

    @classmethod
    def of(cls, span: Span) -> "Entry":
        def text(name: str) -> str:
            return str(span.attributes.get(name, ""))

        answered = (text(semconv.PROVIDER), text(semconv.RESPONSE_MODEL))
        return cls(
            request_id=span.request_id,
            trace_id=span.trace_id,
            at_unix_ns=span.start_unix_ns,
            duration_ms=span.duration_ms,
            model=text(semconv.REQUEST_MODEL),
            answered_by="/".join(answered) if all(answered) and not span.failed else "",
            reason=text(semconv.REASON),
            cache=text(semconv.CACHE),
            cost_nano_usd=int(text(semconv.COST_NANO_USD) or 0),
            outcome=text(semconv.ERROR_TYPE) or ("failed" if span.failed else span.ended_by),
        )


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
    last = "FROM requests ORDER BY number DESC LIMIT ?"
    bodies = _query(
        folder,
        f"SELECT body FROM spans WHERE trace_id IN (SELECT trace_id {last})",  # noqa: S608 - ours
        limit,
    )
    spans = (_decode(body) for (body,) in bodies)
    by_id = {span.request_id: span for span in spans if span.is_request}
    wanted = _query(folder, f"SELECT request_id {last}", limit)
    # A request that came between the two is in the next list.
    return [Entry.of(by_id[request_id]) for (request_id,) in wanted if request_id in by_id]


def trouble(folder: Path) -> str:
    """Why the user's own collector gets no copies now, in a sentence; "": it does, or is none."""
    try:
        return (folder / TROUBLE).read_text(encoding="utf-8")
    except OSError:
        return ""


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
