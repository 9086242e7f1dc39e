"""What is kept in the state folder, and with which rights."""

import os
import subprocess
from pathlib import Path

import pytest

from penstock.cli import tokens
from penstock.cli.errors import CliError
from penstock.cli.state import MARK, State, read_env, read_json, write_env, write_json


@pytest.fixture
def state(tmp_path: Path) -> State:
    found = State.at(tmp_path / "state")
    found.make()
    return found


def test_the_env_file_can_be_sourced_by_a_shell_and_read_back(state: State) -> None:
    values = {"PENSTOCK_API_KEY": "ps-a'b c$d", "PENSTOCK_HTTP": "http://127.0.0.1:1/v1"}
    write_env(state.env, values)
    script = f'source {state.env}; printf "%s|%s" "$PENSTOCK_API_KEY" "$PENSTOCK_HTTP"'
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "ps-a'b c$d|http://127.0.0.1:1/v1" == told.stdout
    assert values == read_env(state.env)


def test_files_with_secrets_are_their_owners_alone(state: State) -> None:
    write_env(state.env, {"PENSTOCK_API_KEY": "ps-1"})
    tokens.load_or_make(state)
    assert {0o600} == {p.stat().st_mode & 0o777 for p in (state.env, state.secrets)}


def test_secrets_are_made_once_and_all_differ(state: State) -> None:
    first = tokens.load_or_make(state)
    assert first == tokens.load_or_make(state)
    values = read_json(state.secrets)
    assert len(values) == len(set(values.values()))
    assert str(values["admin_token"]) not in repr(first)


def test_a_secret_that_a_newer_release_needs_is_added(state: State) -> None:
    first = tokens.load_or_make(state)
    kept = read_json(state.secrets)
    del kept["traces_token"]
    write_json(state.secrets, kept)
    second = tokens.load_or_make(state)
    assert first.admin_token == second.admin_token
    assert second.traces_token


def test_a_half_written_file_counts_as_none(state: State) -> None:
    state.ports.write_text('{"quota": 20')
    assert {} == read_json(state.ports)


def test_a_folder_of_a_release_that_left_no_mark_is_ours_and_gets_one(state: State) -> None:
    state.mark.unlink()
    assert not state.is_ours
    state.lock.touch()
    assert state.is_ours
    state.make()
    assert MARK == state.mark.read_text()


def test_an_empty_folder_may_be_taken(tmp_path: Path) -> None:
    state = State.at(tmp_path)
    assert not state.is_ours
    state.make()
    assert state.is_ours


def test_a_file_that_cannot_be_written_is_told_and_the_old_one_stays(state: State) -> None:
    write_json(state.ports, {"quota": 1})
    # As a full disk: the new file cannot be made beside the old one.
    state.ports.with_name(f".{state.ports.name}.{os.getpid()}").mkdir()
    with pytest.raises(CliError, match=r"ports\.json cannot be written: ") as caught:
        write_json(state.ports, {"quota": 2})
    assert "Free some space" in caught.value.remedy
    assert {"quota": 1} == read_json(state.ports)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CliError, match="cannot be written: Not a directory") as caught:
        State.at(tmp_path / "file" / "state").make()
    assert "--state" in caught.value.remedy
