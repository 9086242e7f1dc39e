"""`make down`, `make clean` and `make clean-env`, also where the environment is not there."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TELL = '#!/bin/sh\necho "penstock $1 in $PENSTOCK_STATE"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    return tmp_path


def make(project: Path, *words: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "PENSTOCK_"))}
    environment["PATH"] = path or environment["PATH"]
    command = [shutil.which("make") or "make", *words]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )


@contextmanager
def running(state: Path) -> Iterator[None]:
    """As `penstock up` holds it."""
    (state / "run").mkdir(parents=True)
    with (state / "up.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def install(project: Path) -> None:
    program = project / ".venv" / "bin" / "penstock"
    program.parent.mkdir(parents=True)
    program.write_text(TELL)
    program.chmod(0o755)


@pytest.mark.parametrize("target", ["down", "clean", "clean-env", "status"])
@pytest.mark.parametrize("state", [".penstock", "a b"])
def test_without_the_program_a_running_penstock_is_seen(
    project: Path, target: str, state: str
) -> None:
    with running(project / state):
        done = make(project, target, f"STATE={state}")
    assert 2 == done.returncode
    assert f"Penstock runs on {state}" in done.stderr
    assert "`make down` ends it; where .venv is gone, put it back" in done.stderr
    assert (project / state / "up.lock").exists()
    assert "Nothing of Penstock runs here" not in done.stdout


def test_without_flock_either(project: Path) -> None:
    tools = project / "tools"
    tools.mkdir()
    (tools / "python3").symlink_to(sys.executable)
    for name in ("bash", "env"):
        (tools / name).symlink_to(shutil.which(name) or name)
    with running(project / ".penstock"):
        assert "Penstock runs on" in make(project, "down", path=str(tools)).stderr
    assert 0 == make(project, "down", path=str(tools)).returncode


def test_without_the_program_what_a_killed_one_left_is_told(project: Path) -> None:
    with running(project / ".penstock"):
        pass
    (project / ".penstock" / "run" / "processes.json").touch()
    done = make(project, "down")
    assert 2 == done.returncode
    assert "was killed and may have left processes" in done.stderr


def test_nothing_runs_in_an_empty_clone(project: Path) -> None:
    down, clean, clean_env = (make(project, name) for name in ("down", "clean", "clean-env"))
    assert (0, "Nothing of Penstock runs here.\n") == (down.returncode, down.stdout)
    assert (0, "There is no state to remove.\n") == (clean.returncode, clean.stdout)
    assert 0 == clean_env.returncode


def test_the_environment_goes_only_when_nothing_runs(project: Path) -> None:
    install(project)
    with running(project / ".penstock"):
        assert 2 == make(project, "clean-env").returncode
        assert (project / ".venv").exists()
    assert 0 == make(project, "clean-env").returncode
    assert not (project / ".venv").exists()


@pytest.mark.parametrize("target", ["down", "clean", "status"])
def test_the_program_is_told_the_state_folder_whatever_its_name(project: Path, target: str) -> None:
    install(project)
    assert f"penstock {target} in a b\n" == make(project, target, "STATE=a b").stdout
    assert f"penstock {target} in .penstock\n" == make(project, target).stdout
