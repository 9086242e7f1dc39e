"""Who has a state folder, as others are told."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.cli import lock
from penstock.cli.state import State

HOLD = """
import sys, pathlib
from penstock.cli import lock
from penstock.cli.state import State
with lock.locked(State.at(pathlib.Path(sys.argv[1])), lock.CLEAN):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def state(tmp_path: Path) -> State:
    found = State.at(tmp_path / "state")
    found.make()
    return found


@contextmanager
def held_elsewhere(state: State) -> Iterator["subprocess.Popen[str]"]:
    """By another process, until it is killed or the block ends."""
    command = [sys.executable, "-c", HOLD, str(state.root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert "held\n" == process.stdout.readline()
        yield process


def test_a_second_is_refused_and_told_who_is_first(state: State) -> None:
    with held_elsewhere(state) as first:
        with pytest.raises(lock.Busy), lock.locked(state, lock.UP):
            pass
        assert f"`penstock clean` (pid {first.pid}) is at work on {state.root}" == lock.told(state)


def test_it_is_let_go_with_its_name(state: State) -> None:
    with lock.locked(state, lock.UP):
        holder = lock.holder(state)
        assert holder is not None
        assert (lock.UP, os.getpid()) == (holder.name, holder.pid)
    assert lock.holder(state) is None
    with lock.locked(state, lock.DOWN):
        pass


def test_one_that_was_killed_is_named_no_more(state: State) -> None:
    with held_elsewhere(state) as first:
        first.kill()
        first.wait()
    assert state.lock.stat().st_size
    assert lock.holder(state) is None
    with lock.locked(state, lock.UP):
        pass


def test_a_lock_without_a_name_has_nobody_to_tell(state: State) -> None:
    state.lock.touch()
    assert lock.holder(state) is None
    assert f"another command is at work on {state.root}" == lock.told(state)
