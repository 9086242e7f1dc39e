"""`penstock quota migrate`: forward, told in a line; what fails is told in one, too."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from penstock.cli import __main__ as program
from penstock.cli.app import app
from support.tcp import free_port

program.register()


@pytest.fixture
def migrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def run(dsn: str, *options: str) -> Result:
        monkeypatch.setenv("PENSTOCK_QUOTA_DSN", dsn)
        command = ["--state", str(tmp_path / "state"), "quota", "migrate", *options]
        return CliRunner().invoke(app, command)

    return run


def test_an_empty_database_becomes_a_ledger_once(
    database_dsn: str, migrate: Callable[..., Result]
) -> None:
    assert "0001_accounts" in migrate(database_dsn).stdout
    again = json.loads(migrate(database_dsn, "--json").stdout)
    assert (True, True) == (again["ok"], "none, all had run before" in again["message"])


def test_a_database_that_is_away_is_told_in_a_line(migrate: Callable[..., Result]) -> None:
    result = migrate(f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    assert 1 == result.exit_code
    assert result.stderr.startswith("penstock: ")
    assert "Traceback" not in result.output
    assert 1 == len(result.stderr.strip().splitlines())


def test_a_ledger_that_is_not_known_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PENSTOCK_QUOTA_DSN", raising=False)
    for name in ("migrate", "audit", "seal", "prune"):
        result = CliRunner().invoke(app, ["--state", str(tmp_path / "none"), "quota", name])
        assert 1 == result.exit_code
        assert "→ Start Penstock with `make up`, or set PENSTOCK_QUOTA_DSN." in result.stderr
