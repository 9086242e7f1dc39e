"""`penstock down`: ends the `up` of a state folder, and whatever a killed one left."""

import contextlib
import shutil
import signal

import psutil
from rich.console import Console

from penstock.cli import processes
from penstock.cli.leftovers import sweep
from penstock.cli.state import State

STOP_SECONDS = 150.0
"""Streams in flight may end, settlements are told to the ledger, PostgreSQL writes its pages: what
the parts may take one after the other (`topology.py`: 40, 30 and 70 s), and some."""


def down(console: Console, state: State) -> bool:
    """Blocks until nothing of it is left. False: nothing ran."""
    if not state.root.exists():
        return False
    running = processes.load(state)
    supervisor = running.supervisor.process() if running else None
    if supervisor is not None:
        console.print(f"Stopping Penstock (pid {supervisor.pid}) …")
        _end(console, supervisor)
    ended = sweep(state)
    if ended:
        console.print(f"Ended what was left: {', '.join(ended)}")
    processes.forget(state)
    shutil.rmtree(state.short_temp, ignore_errors=True)
    return supervisor is not None or bool(ended)


def _end(console: Console, supervisor: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        supervisor.send_signal(signal.SIGTERM)
        try:
            supervisor.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            console.print(f"It did not stop within {STOP_SECONDS:.0f} s: killed.")
            supervisor.kill()
            supervisor.wait(STOP_SECONDS)
