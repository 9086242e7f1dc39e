"""What `up` does by itself beside its parts."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from penstock.cli import processes
from penstock.cli import up as module
from penstock.cli.state import State
from support.wait import until


async def test_a_record_that_a_full_disk_does_not_take_is_told_once_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORD_RETRY_SECONDS", 0.01)
    state = State.at(tmp_path / "state")
    state.make()
    console = Console(file=io.StringIO(), width=1_000)
    plan = cast("Any", SimpleNamespace(state=state, options=SimpleNamespace(told={})))
    run = module._Run(console, plan, cast("Any", None), "off", ())
    tries: list[processes.Running] = []
    save = processes.save

    def counted(state: State, running: processes.Running) -> None:
        tries.append(running)
        save(state, running)

    monkeypatch.setattr(processes, "save", counted)

    state.processes.mkdir()  # as a full disk: it cannot be replaced
    run._record(())
    await until(lambda: len(tries) == 3)
    state.processes.rmdir()
    await until(state.processes.is_file)
    assert processes.load(state) is not None

    told = cast("io.StringIO", console.file).getvalue()
    assert 1 == told.count(f"{state.processes} cannot be written: Is a directory")
    assert 1 == told.count("Free some space")
