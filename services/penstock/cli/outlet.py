"""A console for a program that must go on whatever becomes of its terminal or pipe."""

import io
import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Full, Queue
from threading import Thread
from typing import IO, cast

from rich.console import Console

PIECES_MAX = 1_000
"""That wait for a reader who does not read; more are lost."""

LAST_SECONDS = 1.0
"""For the last pieces to be written at the end."""


class Outlet(io.TextIOBase):
    """A text stream over a file descriptor; whoever prints there neither fails nor waits.

    A thread of its own writes. What cannot be written is lost: the reader of a pipe has ended
    (EPIPE), a terminal was closed (EIO), a disk is full, or nobody reads.
    """

    def __init__(self, descriptor: int, encoding: str) -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._pieces: Queue[bytes | None] = Queue(PIECES_MAX)
        self._writer = Thread(target=self._write_all, name="outlet", daemon=True)
        self._writer.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, text: str, /) -> int:
        with suppress(Full):
            self._pieces.put_nowait(text.encode(self._encoding, errors="replace"))
        return len(text)

    def close(self) -> None:
        if not self.closed:
            with suppress(Full):
                self._pieces.put(None, timeout=LAST_SECONDS)
            self._writer.join(LAST_SECONDS)
        super().close()

    def _write_all(self) -> None:
        while (piece := self._pieces.get()) is not None:
            with suppress(OSError):
                while piece:
                    piece = piece[os.write(self._descriptor, piece) :]


def on_hangup(terminal: int, tell: Callable[[], object]) -> None:
    """Calls `tell`, in a thread of its own, when the terminal is closed.

    SIGHUP alone does not say so: it is the session's first process that gets it, and a `make` there
    keeps it for itself.
    """

    def wait() -> None:
        poll = select.poll()
        poll.register(terminal, 0)
        poll.poll()
        with suppress(RuntimeError):  # the event loop has ended
            tell()

    Thread(target=wait, name="hangup", daemon=True).start()


@contextmanager
def enduring(console: Console) -> Iterator[Console]:
    """One that prints where `console` does, by an `Outlet`."""
    console.file.flush()
    with Outlet(console.file.fileno(), console.encoding) as outlet:
        yield Console(file=cast("IO[str]", outlet), highlight=False, soft_wrap=True)
