"""Ends what a killed `up` left behind. Nothing of anybody else's is touched."""

import contextlib
import os
import signal

import psutil

from penstock.cli import processes
from penstock.cli.state import State
from penstock.core.postgres_server import PostgresServerError, running_pid, server_home

GRACE_SECONDS = 30.0
"""The children got SIGTERM from the kernel when their parent died: most are on their way out."""

POSTGRES_SECONDS = 20.0


def sweep(state: State) -> list[str]:
    """Names what it ended. Blocks."""
    running = processes.load(state)
    records = running.children if running else ()
    ended = processes.sweep(state, records, grace_seconds=GRACE_SECONDS)
    if _stop_postgres(state):
        ended.append("PostgreSQL")
    return ended


def _stop_postgres(state: State) -> bool:
    """A server whose starter was killed: told to shut down fast and in order."""
    if not state.postgres.exists():
        return False
    try:
        data = server_home(state.postgres) / "data"
    except (PostgresServerError, OSError):
        return False
    pid = running_pid(data)
    if pid is None:
        return False
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGINT)
        process.wait(POSTGRES_SECONDS)
    return True
