"""A Ray head of ours ends with us, however we end, and takes nobody else's Ray with it."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from penstock.core.ports import free_ports
from penstock.local import processes
from penstock.local.cluster import Head, HeadSettings
from penstock.local.config import Ports
from support.local_stack import STOP_SECONDS, start

CATALOGUE_WITHOUT_MODELS = "version: 1\nmodels: {}\n"


def environment(folder: Path, ports: Ports) -> dict[str, str]:
    (folder / "penstock.yaml").write_text(CATALOGUE_WITHOUT_MODELS)
    return {
        **os.environ,
        "PENSTOCK_CONFIG": str(folder / "penstock.yaml"),
        "PENSTOCK_ROUTER_TOKEN": "router-secret",
        "RAY_AUTH_TOKEN": "ray-secret-that-is-long-enough-for-ray",
        "PENSTOCK_RAY_API": f"http://127.0.0.1:{ports.dashboard}",
        "PENSTOCK_RAY_ADDRESS": f"127.0.0.1:{ports.gcs}",
    }


async def until(condition: object, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            assert process.poll() is None
            await asyncio.sleep(0.1)


class Started:
    """`python -m penstock.local` on its way up, and its head."""

    def __init__(self, folder: Path) -> None:
        ports = Ports(*free_ports(2))
        secret = "ray-secret-that-is-long-enough-for-ray"
        self.settings = HeadSettings(ports, secret, "router-secret", 1)
        self.process = start("penstock.local", folder, environment(folder, ports))

    @property
    def head_processes(self) -> list[psutil.Process]:
        return processes.working_in(self.settings.working_folder)


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    started = Started(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()
    await Head(started.settings).stop()


async def test_after_kill_9_the_next_start_takes_away_what_was_left(started: Started) -> None:
    # The raylet's agents are the last to come, and the ones that would stay.
    await until(lambda: len(started.head_processes) > 5, started.process)
    started.process.kill()
    started.process.wait(STOP_SECONDS)

    await asyncio.to_thread(Head(started.settings)._clear_leftovers, lambda _: None)
    assert started.head_processes == []


async def test_sigterm_while_it_starts_leaves_no_process_and_no_folder(
    started: Started, tmp_path: Path
) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "60", cwd=tmp_path)
    await until(lambda: started.head_processes, started.process)
    started.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(started.process.wait, STOP_SECONDS) == 0
    assert started.head_processes == []
    assert not started.settings.folder.exists()
    assert bystander.returncode is None
    bystander.kill()
    await bystander.wait()
