"""The log of a process, as its `__main__` sets it up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.core import log

PROGRAM = "from penstock.core import log; log.setup('test'); import logging; logging.info('said')"


def run(level: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PENSTOCK_LOG_LEVEL": level},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("level", ["", "info", "DEBUG"])
def test_a_line_is_a_json_object(level: str) -> None:
    told = json.loads(run(level).stderr)
    expected = {"level": "info", "service": "test", "logger": "root", "message": "said"}
    assert expected == {name: told[name] for name in expected}


def test_below_its_level_nothing_is_told() -> None:
    assert "" == run("warning").stderr


def test_a_level_that_is_none_is_told_with_those_that_are() -> None:
    ended = run("chatty")
    expected = (
        "test: PENSTOCK_LOG_LEVEL: 'chatty' is not known; write one of DEBUG, INFO, WARNING, ERROR"
    )
    assert (1, expected) == (ended.returncode, ended.stderr.strip())


def test_a_file_that_has_grown_is_put_aside_and_the_one_before_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "FILE_BYTES_MAX", 3)
    file = tmp_path / "up.log"
    log.put_aside(file)
    for text in ("one.", "two.", "3"):
        file.write_text(text)
        log.put_aside(file)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert {"up.log": "3", "up.log.1": "two."} == found
