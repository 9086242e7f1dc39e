"""Processes that Penstock started, on record: found again after `kill -9`, and never mistaken.

A pid alone may be another program's by now; a record is a pid and its start time.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from penstock.cli.state import State, read_json, write_json

START_TOLERANCE_SECONDS = 0.05
"""The kernel counts starts in ticks of 10 ms; `psutil` adds them to a boot time of its own."""

KILL_SECONDS = 10.0
"""For the kernel to take away killed processes, some with gigabytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """One process of ours."""

    name: str
    pid: int
    started_at: float
    """Seconds since the epoch, as `psutil` tells it."""

    @classmethod
    def of(cls, name: str, pid: int) -> "Record":
        return cls(name, pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, if it is still the same one and no zombie."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started_at) <= START_TOLERANCE_SECONDS
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


@dataclass(frozen=True, slots=True)
class Running:
    """What `up` records while it runs."""

    supervisor: Record
    children: tuple[Record, ...]
    options: dict[str, str]
    paid_variables: tuple[str, ...] = ()
    """Names (never values) of the providers' keys that were set."""
    paid: str = ""
    """A sentence on the paid side, of the configuration in use."""


def save(state: State, running: Running) -> None:
    write_json(state.processes, asdict(running))


def load(state: State) -> Running | None:
    """The record of the last `up`; None: there is none, or it ended in order."""
    value: Any = read_json(state.processes)
    try:
        supervisor = Record(**value["supervisor"])
        children = tuple(Record(**c) for c in value["children"])
        options = {str(k): str(v) for k, v in value["options"].items()}
        variables = tuple(str(name) for name in value.get("paid_variables", ()))
    except (KeyError, TypeError, AttributeError):
        return None
    return Running(supervisor, children, options, variables, str(value.get("paid", "")))


def forget(state: State) -> None:
    state.processes.unlink(missing_ok=True)


def working_below(folder: Path) -> list[psutil.Process]:
    """Processes of this user whose working folder is, or was, at or below `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real != os.getuid() or process.pid == os.getpid():
                continue
            # The kernel's word for a folder that was removed meanwhile.
            place = Path(process.cwd().removesuffix(" (deleted)"))
        except (psutil.Error, OSError):
            continue
        if place == folder or folder in place.parents:
            found.append(process)
    return found


def end(processes: Sequence[psutil.Process], *, grace_seconds: float) -> int:
    """SIGTERM, then SIGKILL to those that are left after the grace. Blocks; how many it ended."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=KILL_SECONDS)
    return len(processes)


def sweep(state: State, records: Iterable[Record], *, grace_seconds: float) -> list[str]:
    """Ends what is left of a run that was killed; names what it ended. Blocks."""
    alive = [(r.name, p) for r in records if (p := r.process()) is not None]
    end([process for _, process in alive], grace_seconds=grace_seconds)
    names = [name for name, _ in alive]
    # Ray's processes outlive their parents; all work below the folder that only Ray was given.
    until = time.monotonic() + KILL_SECONDS
    while (strays := working_below(state.short_temp)) and time.monotonic() < until:
        names.append(f"{end(strays, grace_seconds=0)} processes of Ray")
    return names
