"""The supervisor over real processes."""

import asyncio
import os
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from penstock.cli.child import Service
from penstock.cli.errors import CliError
from penstock.cli.readiness import EndsWell
from penstock.cli.supervisor import Supervisor
from support.children import DIE, SERVE, SILENT, STUBBORN, Story, service

BOUND_SECONDS = 30


class Stage:
    """A supervisor that runs in the background of a test."""

    def __init__(self, services: Sequence[Service], folder: Path) -> None:
        self.story = Story()
        self.stop = asyncio.Event()
        self.greeted = asyncio.Event()
        self.supervisor = Supervisor(
            services,
            log_of=lambda name: folder / f"{name}.log",
            watcher=self.story,
            backoff_seconds=(0.01,),
            restarts_max=2,
        )

    async def _greet(self) -> None:
        self.greeted.set()

    async def run(self) -> None:
        try:
            await self.supervisor.run(self.stop, self._greet)
        finally:
            await self.supervisor.stop(asyncio.Event())

    async def play(self, act: Coroutine[Any, Any, None] | None = None) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            running = asyncio.create_task(self.run())
            greeted = asyncio.create_task(self.greeted.wait())
            await asyncio.wait({running, greeted}, return_when=asyncio.FIRST_COMPLETED)
            greeted.cancel()
            if act is not None:
                await act
            self.stop.set()
            await running


def kill(stage: Stage, name: str) -> None:
    record = stage.story.children[name][-1].record
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)


async def test_services_start_after_what_they_need_and_stop_before_it(tmp_path: Path) -> None:
    database = service("database", tmp_path, stop_rank=2)
    ledger = service("ledger", tmp_path, after=("database",), stop_rank=1)
    stage = Stage([database, ledger], tmp_path)
    await stage.play()
    told = [e for e in stage.story.events if "waits" not in e]
    assert [
        "database starts",
        "database is ready",
        "ledger starts",
        "ledger is ready",
        "ledger stops",
        "ledger stopped",
        "database stops",
        "database stopped",
    ] == told


async def test_a_task_is_ready_when_it_has_ended_well(tmp_path: Path) -> None:
    task = service("migrate", tmp_path, "pass", readiness=EndsWell())
    after = service("ledger", tmp_path, after=("migrate",))
    stage = Stage([task, after], tmp_path)
    await stage.play()
    assert "migrate is ready" in stage.story.events
    assert "ledger is ready" in stage.story.events


async def test_a_task_that_fails_ends_the_start(tmp_path: Path) -> None:
    task = service("migrate", tmp_path, DIE, readiness=EndsWell())
    stage = Stage([task, service("ledger", tmp_path, after=("migrate",))], tmp_path)
    with pytest.raises(CliError, match=r"migrate .* ended with status 3"):
        await stage.play()
    assert "ledger" not in stage.story.children


async def test_a_child_that_dies_before_it_is_ready_is_told_with_its_last_words(
    tmp_path: Path,
) -> None:
    stage = Stage([service("other", tmp_path), service("local", tmp_path, DIE)], tmp_path)
    with pytest.raises(CliError) as caught:
        await stage.play()
    assert "local (the local) ended with status 3" in caught.value.message
    assert "no more memory" in caught.value.message
    assert "local.log" in caught.value.remedy
    assert not stage.story.children["other"][0].is_running


async def test_last_words_are_faults_before_all_else_and_never_settings(tmp_path: Path) -> None:
    words = [
        '{"level": "info", "message": "starting with dsn=SecretStr()"}',
        '{"level": "error", "message": "no room"}',
        '{"level": "info", "message": "draining"}',
    ]
    script = "import sys; [sys.stderr.write(w + chr(10)) for w in {}]; sys.exit(3)"
    for lines, told in ((words, "  error: no room"), (words[::2], "  info: draining")):
        stage = Stage([service("cache", tmp_path, script.format(lines))], tmp_path)
        with pytest.raises(CliError) as caught:
            await stage.play()
        assert told == caught.value.message.partition("Its last words:\n")[2]


async def test_a_child_that_is_never_ready_is_given_up_in_time(tmp_path: Path) -> None:
    stage = Stage([service("local", tmp_path, SILENT, start_seconds=0.5)], tmp_path)
    with pytest.raises(CliError, match="was not ready within"):
        await stage.play()
    assert not stage.story.children["local"][0].is_running


async def test_a_child_that_is_killed_is_started_again(tmp_path: Path) -> None:
    stage = Stage([service("ledger", tmp_path)], tmp_path)

    async def act() -> None:
        kill(stage, "ledger")
        await stage.story.until("ledger is ready", times=2)

    await stage.play(act())
    assert any("ledger died: was ended by SIGKILL" in e for e in stage.story.events)
    assert 2 == len(stage.story.children["ledger"])


async def test_a_restart_that_the_machine_refuses_is_tried_until_it_works(tmp_path: Path) -> None:
    stage = Stage([service("ledger", tmp_path)], tmp_path)
    log = tmp_path / "ledger.log"

    async def act() -> None:
        # As on a full disk: its log cannot be opened.
        log.unlink()
        log.mkdir()
        kill(stage, "ledger")
        refused = f"ledger died: cannot be started: Is a directory: {log}: "
        # More often than it may die.
        await stage.story.until(refused, times=5)
        log.rmdir()
        await stage.story.until("ledger is ready", times=2)

    await stage.play(act())


async def test_a_first_start_that_the_machine_refuses_ends_the_whole(tmp_path: Path) -> None:
    (tmp_path / "ledger.log").mkdir()
    with pytest.raises(CliError, match=r"ledger cannot be started: Is a directory") as caught:
        await Stage([service("ledger", tmp_path)], tmp_path).play()
    assert "Free some space" in caught.value.remedy


async def test_a_child_that_dies_too_often_ends_the_whole(tmp_path: Path) -> None:
    stage = Stage([service("ledger", tmp_path)], tmp_path)

    async def act() -> None:
        for times in (1, 2, 3):
            await stage.story.until("ledger is ready", times=times)
            kill(stage, "ledger")

    running = asyncio.create_task(stage.run())
    async with asyncio.timeout(BOUND_SECONDS):
        await act()
        with pytest.raises(CliError, match="3 times in 120 s"):
            await running


async def test_a_child_that_does_not_hear_is_killed(tmp_path: Path) -> None:
    stage = Stage([service("router", tmp_path, STUBBORN, stop_seconds=0.3)], tmp_path)
    await stage.play()
    assert "router was killed" == stage.story.events[-1]


async def test_a_command_that_does_not_exist_is_told(tmp_path: Path) -> None:
    missing = service("local", tmp_path)
    broken = Service(
        name="local",
        what="models",
        command=("/nowhere/python",),
        readiness=missing.readiness,
        ready_file=missing.ready_file,
    )
    with pytest.raises(CliError, match=r"ended with status 1(.|\n)*/nowhere/python: No such file"):
        await Stage([broken], tmp_path).play()


async def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    services = [service(f"s{i}", tmp_path, SERVE) for i in range(4)]
    stage = Stage(services, tmp_path)
    await stage.play()
    records = [c.record for children in stage.story.children.values() for c in children]
    assert [] == [r for r in records if r is None or psutil.pid_exists(r.pid)]
