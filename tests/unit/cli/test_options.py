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


def paid_fault(tmp_path: Path, text: str, **flags: Any) -> str:
    path = tmp_path / "penstock.yaml"
    path.write_text(text)
    with pytest.raises(CliError) as caught:
        preflight.check(read({}, config=path, **flags), State.at(tmp_path))
    return caught.value.message


def test_a_stand_in_for_a_provider_that_is_not_there_is_told(tmp_path: Path) -> None:
    told = paid_fault(tmp_path, "version: 1\n", paid="stand-in")
    assert told.startswith("PAID=stand-in plays openai, which")


def test_a_base_url_of_the_environment_that_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "api.openai.com/v1")
    told = paid_fault(tmp_path, "version: 1\nproviders: {openai: {}}\n")
    assert "OPENAI_BASE_URL must be a URL such as https://api.example.com/v1" == told


def test_a_log_level_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_LOG_LEVEL", "chatty")
    told = paid_fault(tmp_path, "version: 1\n")
    assert told.startswith("PENSTOCK_LOG_LEVEL: 'chatty' is not known; write one of DEBUG, INFO")
