"""A program for tests: a supervisor over fake children that records what it started, as `up` does.

`python supervised.py FOLDER`: prints "ready" when they are, runs until SIGTERM.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from penstock.cli import lock, processes
from penstock.cli.state import State
from penstock.cli.supervisor import Supervisor
from support.children import STUBBORN, Story, service


async def main(folder: Path) -> None:
    state = State.at(folder)
    state.make()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    me = processes.Record.of(lock.UP, os.getpid())
    supervisor = Supervisor(
        [service("ledger", state.run), service("stubborn", state.run, STUBBORN, stop_seconds=0.5)],
        log_of=state.log,
        watcher=Story(),
        on_change=lambda children: processes.save(
            state,
            processes.Running(me, tuple(c.record for c in children if c.record is not None), {}),
        ),
    )

    async def greet() -> None:
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    with lock.locked(state, lock.UP):
        await supervisor.run(stop, greet)
        await supervisor.stop(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
