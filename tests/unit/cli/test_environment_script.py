"""`scripts/environment.sh` with an interpreter that installs nothing, and only when it is let."""

import asyncio
import os
import shutil
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

import pytest

from support.wait import until

SCRIPT = Path(__file__).parents[3] / "scripts" / "environment.sh"

PYTHON = """#!/usr/bin/env bash
case "$*" in
*"-m venv"*)
    mkdir -p "${@: -1}/bin"
    cp "$0" "${@: -1}/bin/python"
    printf '#!/bin/sh\\n' >"${@: -1}/bin/pip"
    chmod +x "${@: -1}/bin/pip" ;;
*--require-hashes*)
    [ ! -e offline ] || { echo "ERROR: No matching distribution"; exit 1; }
    trap 'echo "ERROR: Operation cancelled by user"; exit 2' INT
    echo x >>installs
    read -r _ <gate ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("a.lock", "b.lock"):
        (tmp_path / name).write_text(f"{name}==1\n")
    (tmp_path / "pyproject.toml").touch()
    os.mkfifo(tmp_path / "gate")
    return tmp_path


async def install(project: Path, group: str = "runtime", lock: str = "a.lock") -> Process:
    return await asyncio.create_subprocess_exec(
        project / "scripts" / "environment.sh",
        *("venv", group, lock),
        env={**os.environ, "PYTHON": str(project / "python")},
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,
    )


async def said(process: Process) -> str:
    return (await process.communicate())[0].decode()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock(1) is not there")
async def test_a_second_install_waits_for_the_first_and_finds_its_work(project: Path) -> None:
    first = await install(project)
    await until((project / "installs").exists)
    second = await install(project)
    assert second.stdout is not None
    assert b"another install of venv is under way, waiting\n" == await second.stdout.readline()
    (project / "gate").write_text("go\n")
    assert "venv is ready" in await said(first)
    assert ("", 0) == (await said(second), second.returncode)
    assert "x\n" == (project / "installs").read_text()


async def installed(project: Path) -> Path:
    """The environment, with a file in it that a new one would lack."""
    process = await install(project)
    await until((project / "installs").exists)
    (project / "gate").write_text("go\n")
    await said(process)
    assert 0 == process.returncode
    kept = project / "venv" / "kept"
    kept.touch()
    return kept


async def test_an_install_that_fails_costs_nothing_that_worked(project: Path) -> None:
    kept = await installed(project)
    (project / "offline").touch()
    failing = await install(project, "dev", "b.lock")
    assert "pip could not install b.lock: ERROR: No matching" in await said(failing)
    assert 1 == failing.returncode

    again = await install(project)

    assert ("", 0) == (await said(again), again.returncode)
    assert kept.exists()


async def test_a_changed_lock_that_cannot_be_had_leaves_what_there_is(project: Path) -> None:
    kept = await installed(project)
    (project / "a.lock").write_text("a==2\n")
    (project / "offline").touch()
    for _ in range(2):
        failing = await install(project)
        assert "pip could not install a.lock" in await said(failing)
    assert kept.exists()


async def test_a_package_that_was_cut_off_is_unpacked_again(project: Path) -> None:
    await installed(project)
    packages = project / "venv" / "lib" / "python3.11" / "site-packages"
    whole, cut_off = (packages / f"{name}-1.dist-info" for name in ("whole", "cut_off"))
    for package in (whole, cut_off):
        package.mkdir(parents=True)
        (package / "METADATA").touch()
    (whole / "INSTALLER").touch()
    (project / "a.lock").write_text("a==2\n")
    process = await install(project)
    await until(lambda: (project / "installs").read_text().count("x") == 2)
    assert [whole] == list(packages.iterdir())
    (project / "gate").write_text("go\n")
    await said(process)


async def test_an_interrupt_is_told_as_one_and_the_next_install_goes_on(project: Path) -> None:
    process = await install(project)
    await until((project / "installs").exists)
    os.killpg(process.pid, signal.SIGINT)
    told = await said(process)
    assert 130 == process.returncode
    assert "Interrupted; the same command goes on" in told
    assert "pip could not" not in told

    again = await install(project)
    await until(lambda: (project / "installs").read_text().count("x") == 2)
    (project / "gate").write_text("go\n")
    assert "venv is ready" in await said(again)
    assert 0 == again.returncode
