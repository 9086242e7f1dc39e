"""The command line as a person meets it: clear lines, a status that is not 0, no traceback."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from penstock.cli import __main__ as program
from penstock.cli import child
from penstock.cli.app import app
from penstock.cli.commands_ledger import as_dict
from penstock.core.ports import free_port
from penstock.quota.v1 import admin_pb2

program.register()


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("PENSTOCK_GRPC", "PENSTOCK_API_KEY", "PENSTOCK_CONFIG", "PAID", "ENGINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PENSTOCK_GRPC_PORT", "PENSTOCK_HTTP_PORT"):
        # Whoever runs Penstock on this machine has the default ones.
        monkeypatch.setenv(name, str(free_port()))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["--state", str(tmp_path / "state"), *arguments])

    return run


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["status"], "does not run"),
        (["models"], "no router is known here"),
        (["explain", "hello"], "no router is known here"),
        (["chat", "hello"], "no router is known here"),
        (["chat", "--json"], "--json needs PROMPT"),
        (["keys", "list"], "no ledger is known here"),
        (["keys", "create", "x", "--expires", "soon"], "is no date or time"),
        (["budget", "set", "12,50"], "is no decimal amount"),
        (["budget", "set", "-1"], "is not between 0 and"),
        (["budget", "set", "0.0000000001"], "finer than a nano-USD"),
        (["budget", "set", "5", "--window", "week"], "neither month nor total"),
        (["budget", "set", "5", "--time-zone", "Mars/Base"], "is not known"),
        (["usage", "--since", "yesterday"], "is no date or time"),
        (["quota", "audit"], "database is not known here"),
        (["trace", "req_1"], "no traces are kept"),
        (["up", "--paid", "gratis"], "PAID=gratis is not known"),
        (["up", "--grpc-port", "0"], "is no port"),
        (["up", "--grpc-port", "7099", "--http-port", "7099"], "cannot share port"),
        (["up", "--engine", "vllm"], "make env-vllm"),
        (["config", "check", "nowhere.yaml"], "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_done_is_told_in_a_line(ask, command: list[str], told: str) -> None:
    if "-1" in command:
        command = [*command[:-1], "--", "-1"]
    result = ask(*command)
    assert result.exit_code in {1, 2}, result.output
    assert told in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


def test_down_without_anything_running_is_no_fault(ask) -> None:
    assert {"stopped": False} == json.loads(ask("down", "--json").stdout)


def test_clean_removes_the_state(ask, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    assert {"removed": True} == json.loads(ask("clean", "--json").stdout)
    assert not (tmp_path / "state").exists()


def test_the_example_is_a_good_configuration(ask, tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text(ask("config", "example").stdout)
    told = json.loads(ask("config", "check", "--json").stdout)
    assert (True, 1) == (told["ok"], told["models"])


def test_all_faults_of_a_configuration_are_told_at_once(ask, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "version: 2\nmodels:\n  m:\n    source: x\nlimits:\n  n_max: 0\n"
    )
    result = ask("config", "check", "bad.yaml", "--json")
    faults = json.loads(result.stdout)["faults"]
    assert 1 == result.exit_code
    assert any("bad.yaml:1: version" in fault for fault in faults)
    assert any("bad.yaml:6: limits.n_max" in fault for fault in faults)


def test_json_keeps_amounts_as_exact_numbers() -> None:
    row = admin_pb2.UsageRow(key_id="key_3", posted_nano_usd=2**62 + 1, attempts=3)
    told = as_dict(admin_pb2.GetUsageResponse(rows=[row]))["rows"][0]
    assert (2**62 + 1, 3, "key_3") == (told["posted_nano_usd"], told["attempts"], told["key_id"])


def test_a_log_line_is_told_as_its_level_and_message() -> None:
    line = '{"level": "error", "message": "no", "exception": "Traceback\\n  x\\nValueError: y"}'
    assert "error: no (ValueError: y)" == child.readable(line)
    assert "plain" == child.readable("plain\n")
