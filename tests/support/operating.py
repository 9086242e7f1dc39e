"""An operator at the command line: `penstock …` in this process, against real quota processes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from penstock.cli import __main__ as program
from penstock.cli.app import app
from support.ledger import Ledger
from support.quota_process import ADMIN_TOKEN, QuotaProcess, quota_process

__all__ = ["operating", "operator"]

program.register()


@dataclass(frozen=True)
class Operator:
    quota: QuotaProcess
    ledger: Ledger

    async def ask(self, *arguments: str) -> Result:
        """Whatever comes of it."""
        command = ["--state", "state", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, command)

    async def said(self, *arguments: str) -> str:
        """What a person sees of a command that succeeds."""
        result = await self.ask(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    async def json(self, *arguments: str) -> Any:
        """The document of a command that succeeds."""
        return json.loads(await self.said(*arguments, "--json"))

    async def refused(self, *arguments: str) -> str:
        """What is told, in one line, where it fails without a traceback."""
        result = await self.ask(*arguments)
        assert result.exit_code in {1, 2}, result.output
        assert isinstance(result.exception, SystemExit)
        return " ".join(result.stderr.split())


@asynccontextmanager
async def operating(
    ledger: Ledger, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    """Over the test's ledger, whose clock the test moves; in an empty folder."""
    async with quota_process(ledger.dsn, folder) as running:
        monkeypatch.chdir(folder)
        for name, value in {
            "PENSTOCK_QUOTA_ADMIN_ADDRESS": running.admin_address,
            "PENSTOCK_ADMIN_TOKEN": ADMIN_TOKEN,
            "PENSTOCK_QUOTA_DSN": ledger.dsn,
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("PENSTOCK_KEY_ID", raising=False)
        yield Operator(running, ledger)


@pytest.fixture
async def operator(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    async with operating(ledger, tmp_path, monkeypatch) as running:
        yield running
