"""The last traces in one SQLite file: bounded in traces, in spans a trace and in bytes.

Not a second engine for what matters: losing this file loses nothing but a view. One writer, this
process; readers open it read-only from others.
"""

import logging
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from penstock.traces.model import Span

logger = logging.getLogger(__name__)

FILE: Final = "traces.sqlite"

TROUBLE: Final = "trouble"
"""The file that says why the user's collector gets no copies; missing while it does."""

SPANS_PER_TRACE_MAX: Final = 1_024
"""A client may give one trace id to all that it does; its first requests are kept."""

BYTES_MAX: Final = 512 * 1024 * 1024
"""Of the file. Above it the oldest traces go, however many were to be kept."""

_PAGE_BYTES: Final = 4_096
_VERSION: Final = 1
_SPAN_BYTES_MAX: Final = 1024 * 1024

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS traces (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id TEXT NOT NULL UNIQUE,
    spans INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS spans (
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (trace_id, span_id)
);
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL UNIQUE,
    trace_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS requests_of_trace ON requests (trace_id);
"""

_encode = msgspec.json.Encoder().encode


class StoreError(Exception):
    """The folder or the file cannot be used; the message says which and what to do."""


class Store:
    """The writer's side. Methods block; they are called from one thread."""

    def __init__(self, folder: Path, keep: int, bytes_max: int = BYTES_MAX) -> None:
        """Opens or makes the store; a file that is damaged or of another version is made anew.

        Raises:
            StoreError: the folder cannot be written.
        """
        assert keep >= 1
        self._keep = keep
        self._bytes_max = bytes_max
        self._trouble = folder / TROUBLE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._trouble.unlink(missing_ok=True)
            self._path = folder / FILE
            self._db = self._open()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot keep traces in {folder}: {error}") from None

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            logger.warning("the trace store is made anew: %s", error)
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        # Spans can hold prompts where an operator records them: the file is its owner's alone.
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"its version {version} is not {_VERSION}")
            db.execute(f"PRAGMA max_page_count = {self._bytes_max // _PAGE_BYTES}")
            db.executescript(_SCHEMA)
            db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute("SELECT count(*) FROM traces").fetchone()
        except sqlite3.Error:
            db.close()
            raise
        return db

    def add(self, spans: Sequence[Span]) -> None:
        """Keeps spans and lets the oldest traces go, in one transaction.

        Raises:
            StoreError: the disk is full or broken.
        """
        try:
            self._add(spans)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "") != "SQLITE_FULL":
                raise StoreError(f"cannot keep traces: {error}") from None
            try:
                self._evict(self._count() // 2)
                self._add(spans)
            except sqlite3.Error as again:
                raise StoreError(f"cannot keep traces: {again}") from None
        except sqlite3.Error as error:
            raise StoreError(f"cannot keep traces: {error}") from None

    def _add(self, spans: Sequence[Span]) -> None:
        with _Transaction(self._db):
            for span in spans:
                self._insert(span)
            self._evict(self._keep)

    def _insert(self, span: Span) -> None:
        body = _encode(span)
        if len(body) > _SPAN_BYTES_MAX:
            return
        row = self._db.execute(
            "INSERT INTO traces (trace_id, spans) VALUES (?, 1)"
            " ON CONFLICT (trace_id) DO UPDATE SET spans = spans + 1 RETURNING spans",
            (span.trace_id,),
        ).fetchone()
        if row[0] > SPANS_PER_TRACE_MAX:
            return
        self._db.execute(
            "INSERT OR REPLACE INTO spans (trace_id, span_id, body) VALUES (?, ?, ?)",
            (span.trace_id, span.span_id, body),
        )
        if span.is_request and span.request_id:
            self._db.execute(
                "INSERT OR REPLACE INTO requests (request_id, trace_id) VALUES (?, ?)",
                (span.request_id[:128], span.trace_id),
            )

    def _evict(self, keep: int) -> None:
        excess = self._count() - keep
        if excess <= 0:
            return
        oldest = "SELECT trace_id FROM traces ORDER BY number LIMIT ?"
        for table in ("spans", "requests", "traces"):
            self._db.execute(f"DELETE FROM {table} WHERE trace_id IN ({oldest})", (excess,))  # noqa: S608 - the names above

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM traces").fetchone()[0])

    def tell_trouble(self, sentence: str) -> None:
        """For `trouble` of the readers; "": there is none."""
        try:
            if sentence:
                self._trouble.write_text(sentence, encoding="utf-8")
            else:
                self._trouble.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._trouble, error.strerror)

    def close(self) -> None:
        self.tell_trouble("")
        self._db.close()


class _Transaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> Self:
        self._db.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:
            self._db.execute("ROLLBACK")
