"""Finds and ends exactly the processes of one Ray head of ours: by their working folder.

`ray stop` would end every Ray on the machine. All processes of a head inherit the folder that it
was started in, which is its alone; that finds also those that outlived their parents (Ray's agents
overwrite their command line and environment, so that neither could tell).
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """To be called in a child before exec: the kernel ends it when its parent is gone, however."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def working_in(folder: Path) -> list[psutil.Process]:
    """Our own processes whose working folder this is or was, this one excepted."""
    # The kernel's word for a folder that was removed meanwhile.
    places = {str(folder), f"{folder} (deleted)"}
    found = []
    for process in psutil.process_iter(["pid", "uids"]):
        uids = process.info["uids"]
        if process.pid == os.getpid() or uids is None or uids.real != os.getuid():
            continue
        try:
            if process.cwd() in places:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(processes: Sequence[psutil.Process], *, timeout_seconds: float) -> None:
    """SIGKILL; returns when they are gone. Blocks. None may be a child that a loop waits for."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=timeout_seconds)
