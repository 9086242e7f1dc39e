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
    (tmp_path / "a.lock").write_text("a==1\n")
    (tmp_path / "pyproject.toml").touch()
    os.mkfifo(tmp_path / "gate")
    return tmp_path


async def install(project: Path) -> Process:
    return await asyncio.create_subprocess_exec(
        project / "scripts" / "environment.sh",
        *("venv", "runtime", "a.lock"),
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


async def test_an_interrupt_is_told_as_one_and_the_next_install_begins_anew(project: Path) -> None:
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
    assert "is half-made" in await said(again)
    assert 0 == again.returncode
