"""`penstock down`: ends the `up` of a state folder, and whatever a killed one left."""

import contextlib
import shutil
import signal
import time

import psutil
from rich.console import Console

from penstock.cli import lock, processes
from penstock.cli.errors import CliError
from penstock.cli.leftovers import sweep
from penstock.cli.state import State

STOP_SECONDS = 150.0
"""Streams in flight may end, settlements are told to the ledger, PostgreSQL writes its pages: what
the parts may take one after the other (`topology.py`: 40, 30 and 70 s), and some."""

NAMELESS_LOOKS_MAX = 100
NAMELESS_LOOK_SECONDS = 0.05
"""For one that has just taken the lock to say who it is."""


def down(console: Console, state: State) -> bool:
    """Blocks until nothing of it is left. False: nothing ran.

    Raises:
        CliError: another command has the state folder, and keeps it.
    """
    if not state.is_ours:
        return False
    stopped, nameless_looks = False, 0
    while True:
        try:
            with lock.locked(state, lock.DOWN):
                ended = sweep(state)
                processes.forget(state)
                shutil.rmtree(state.short_temp, ignore_errors=True)
        except lock.Busy:
            holder = lock.holder(state)
            if holder is not None:
                stopped = _end(console, state, holder) or stopped
            elif nameless_looks == NAMELESS_LOOKS_MAX:
                raise CliError(
                    f"{lock.told(state)} and does not say who it is",
                    remedy=f"`fuser {state.lock}` tells.",
                ) from None
            else:
                nameless_looks += 1
                time.sleep(NAMELESS_LOOK_SECONDS)
            continue
        except FileNotFoundError:
            return stopped  # the one that was waited for has removed the folder
        if ended:
            console.print(f"Ended what was left: {', '.join(ended)}")
        return stopped or bool(ended)


def _end(console: Console, state: State, holder: processes.Record) -> bool:
    """Returns when whoever has the lock is gone. True: it was an `up`."""
    process = holder.process()
    if process is None:
        return False
    is_up = holder.name == lock.UP
    if is_up:
        console.print(f"Stopping Penstock (pid {holder.pid}) …")
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    else:
        console.print(f"{lock.told(state)}: waiting for it …")
    try:
        process.wait(STOP_SECONDS)
    except psutil.TimeoutExpired:
        if not is_up:
            raise CliError(lock.told(state), remedy="Wait for it, or end it.") from None
        console.print(f"It did not stop within {STOP_SECONDS:.0f} s: killed.")
        process.kill()
        process.wait(STOP_SECONDS)
    return is_up
