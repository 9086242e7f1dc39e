"""`penstock ledger reconcile` with files, over a quota process of its own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from penstock.cli import commands_reconcile  # noqa: F401 - it registers the command
from penstock.cli.app import app
from support.exports import bucket, costs, page, usage
from support.ledger import Ledger
from support.quota_process import ADMIN_TOKEN, QuotaProcess, quota_process
from support.reconciliation import World

CONFIG = """
version: 1
providers:
  openai:
    models:
      mini:
        upstream_name: gpt-4o-mini
        context_tokens: 128000
        max_output_tokens: 16384
        price: {input_usd_per_mtok: "0.15", output_usd_per_mtok: "0.60",
                cached_input_usd_per_mtok: "0.075"}
"""


def write(name: str, content: str | bytes) -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
async def quota(ledger: Ledger, tmp_path: Path) -> AsyncIterator[QuotaProcess]:
    async with quota_process(ledger.dsn, tmp_path) as running:
        yield running


@pytest.fixture
def ask(quota: QuotaProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_QUOTA_ADMIN_ADDRESS", quota.admin_address)
    monkeypatch.setenv("PENSTOCK_ADMIN_TOKEN", ADMIN_TOKEN)
    write("penstock.yaml", CONFIG)

    async def run(*arguments: str) -> Result:
        command = ["--state", "state", "ledger", "reconcile", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, command)

    return run


async def november_first(ledger: Ledger) -> World:
    """What the files of `support.exports` are about."""
    await ledger.set_clock(datetime(2026, 11, 1, 10, tzinfo=UTC))
    world = World(ledger)
    key_id = await ledger.new_key(None)
    await world.exactly(key_id, 400, "mini")
    await world.cancelled(key_id, 0, "mini")
    await world.lost(key_id, 0, "mini")
    await world.next_day()
    return world


def document(result: Result) -> dict[str, Any]:
    assert 0 == result.exit_code, result.output
    return json.loads(result.stdout)


async def test_costs_are_reconciled_and_told_as_json(ledger: Ledger, ask: Callable) -> None:
    world = await november_first(ledger)
    write(
        "costs.json",
        page(bucket(0, costs("0.0000009"), costs("0.0000005", line_item="gpt-4o-mini, output"))),
    )
    tried = document(await ask("costs.json", "--dry-run", "--json"))
    assert (True, 1, 1) == (tried["dry_run"], tried["suspense_resolved"], len(tried["drifts"]))
    assert 1_400 == (await world.standing())[0]
    told = document(await ask("costs.json", "--json", "--reason", "November", "--actor", "ann"))
    (drift,) = told["drifts"]
    assert (1_400, 1_400, 1_400, 1_000, 0) == tuple(
        drift[f"{name}_nano_usd"]
        for name in ("reported", "posted_before", "posted_after", "suspense_before", "drift")
    )
    assert "mini" == drift["model"]
    assert (1_400, 0) == (await world.standing())[:2]
    (made,) = await ledger.fetch("SELECT actor, reason, since, until FROM reconciliations")
    assert ("ann", "November", date(2026, 11, 1), date(2026, 11, 2)) == tuple(made)


async def test_usage_alone_is_priced_by_the_configuration(ledger: Ledger, ask: Callable) -> None:
    world = await november_first(ledger)
    tokens = {"input_tokens": 7, "input_cached_tokens": 2, "output_tokens": 1}
    write("usage.json", page(bucket(0, usage(num_model_requests=3, **tokens))))
    result = await ask("usage.json")
    assert 0 == result.exit_code, result.output
    # 5 x 150 + 2 x 75 + 1 x 600 nano-USD.
    assert (1_500, 0) == (await world.standing())[:2]
    assert "priced by the configuration" in result.output
    assert "0.0000015" in result.output


async def test_faults_are_told_before_anything_is_sent(ledger: Ledger, ask: Callable) -> None:
    world = await november_first(ledger)
    standing = await world.standing()
    write("bad.json", page(bucket(0, costs("-1"))))
    write("good.json", page(bucket(0, costs("1"))))
    write("today.json", page(bucket(0), bucket(1, costs("1"))))
    write("binary.csv", b"PK\x03\x04\xff")
    for arguments, told in (
        (["bad.json"], "bad.json, $.data[0].results[0]: amount.value is negative (-1)"),
        (["binary.csv"], "is no UTF-8 text"),
        (["none.json"], "none.json"),
        (["good.json", "good.json"], "in good.json, $.data[0], already"),
        (["good.json", "--until", "2026-11-05"], "the day is not covered in full"),
        (["good.json", "--since", "x"], "is no UTC day"),
        (["good.json", "--account", "proj_a"], "is not PROJECT=ACCOUNT"),
        (["good.json", "--account", "proj_a=team:none"], "there is no"),
        (["today.json"], "UNTIL_INVALID"),
    ):
        result = await ask(*arguments)
        assert 0 != result.exit_code
        assert told in " ".join(result.output.split())
    assert standing == await world.standing()
