"""One command at a time starts or stops what runs on a state folder: a lock with a name on it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from penstock.cli.processes import Record
from penstock.cli.state import State, read_json

UP = "penstock up"
DOWN = "penstock down"
CLEAN = "penstock clean"


class Busy(Exception):
    """Another command has this state folder; `holder` says which."""


@contextmanager
def locked(state: State, name: str) -> Iterator[None]:
    """Held as long as the block runs; the kernel frees it with the process.

    Raises:
        Busy: another process holds it.
    """
    with state.lock.open("ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        file.truncate(0)
        # A full disk keeps nobody from stopping Penstock: then the lock does not say whose it is.
        with suppress(OSError):
            file.write(json.dumps(asdict(Record.of(name, os.getpid()))).encode())
        try:
            yield
        finally:
            file.truncate(0)


def holder(state: State) -> Record | None:
    """Who holds the lock; None: nobody, or one that has not said so yet."""
    try:
        record = Record(**read_json(state.lock))  # type: ignore[arg-type]
    except TypeError:
        return None
    return record if record.process() is not None else None


def told(state: State) -> str:
    """Who is `Busy`, for people."""
    found = holder(state)
    who = f"`{found.name}` (pid {found.pid})" if found else "another command"
    return f"{who} is at work on {state.root}"
