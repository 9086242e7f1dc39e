"""After `kill -9` of the supervisor nothing stays for ever, and nothing of others is touched."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from penstock.cli import processes
from penstock.cli.down import down
from penstock.cli.state import State
from support import supervised

BOUND_SECONDS = 20

SWEEPING = """
with lock.locked(state, lock.UP):
    print("ready", flush=True)
    sys.stdin.read()
"""

STOPPING = SWEEPING.replace("lock.UP", "lock.DOWN")

QUIET = Console(quiet=True)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.at(tmp_path / "state")


@pytest.fixture
def supervisor(state: State) -> Iterator["subprocess.Popen[bytes]"]:
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'services'}:{root / 'tests'}"}
    command = [sys.executable, supervised.__file__, str(state.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        started = children(state)
        yield process
        process.kill()
        for left in started.values():
            with suppress(psutil.NoSuchProcess):
                left.kill()


@contextmanager
def program(script: str, state: State) -> Iterator["subprocess.Popen[bytes]"]:
    """Another command, once it has the lock."""
    state.make()
    imports = "import pathlib, sys; from penstock.cli import lock, state as states\n"
    begin = f"{imports}state = states.State.at(pathlib.Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", begin + script, str(state.root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        yield process
        process.kill()


def children(state: State) -> dict[str, psutil.Process]:
    running = processes.load(state)
    assert running is not None
    return {r.name: p for r in running.children if (p := r.process()) is not None}


def test_down_stops_the_supervisor_and_its_children(
    state: State, supervisor: "subprocess.Popen[bytes]"
) -> None:
    before = children(state)
    assert {"ledger", "stubborn"} == set(before)
    assert down(QUIET, state)
    assert 0 == supervisor.wait(BOUND_SECONDS)
    assert [] == [p for p in before.values() if p.is_running()]
    assert not down(QUIET, state)


def test_children_of_a_killed_supervisor_end_by_themselves(
    state: State, supervisor: "subprocess.Popen[bytes]"
) -> None:
    ledger = children(state)["ledger"]
    supervisor.kill()
    ledger.wait(BOUND_SECONDS)


def test_down_ends_what_a_killed_supervisor_left(
    state: State, supervisor: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = children(state)["stubborn"]
    supervisor.kill()
    supervisor.wait()
    assert stubborn.is_running()
    monkeypatch.setattr("penstock.cli.leftovers.GRACE_SECONDS", 0.2)
    assert down(QUIET, state)
    stubborn.wait(BOUND_SECONDS)


def test_down_ends_an_up_that_has_not_recorded_anything_yet(state: State) -> None:
    with program(SWEEPING, state) as starting:
        assert down(QUIET, state)
        starting.wait(BOUND_SECONDS)


def test_down_waits_for_another_down_and_finds_nothing_left(state: State) -> None:
    with program(STOPPING, state) as other:

        class Told(io.StringIO):
            def write(self, text: str) -> int:
                if "waiting for it" in text and other.stdin is not None:
                    other.stdin.close()  # now it ends
                return super().write(text)

        assert not down(Console(file=Told(), width=1_000), state)
        assert 0 == other.wait(BOUND_SECONDS)


def test_a_recorded_pid_that_is_another_process_now_is_left_alone(state: State) -> None:
    state.make()
    with subprocess.Popen(["sleep", "600"]) as other:
        try:
            mine = processes.Record.of("ledger", other.pid)
            earlier = processes.Record("ledger", other.pid, mine.started_at - 60)
            processes.save(state, processes.Running(earlier, (earlier,), {}))
            assert not down(QUIET, state)
            assert other.poll() is None
        finally:
            other.send_signal(signal.SIGKILL)


def test_a_stray_in_the_folder_that_only_ours_were_given_is_ended(state: State) -> None:
    state.make()
    state.short_temp.mkdir()
    with subprocess.Popen(["sleep", "600"], cwd=state.short_temp) as stray:
        assert down(QUIET, state)
        stray.wait(BOUND_SECONDS)
    assert not state.short_temp.exists()
