"""What an operator or a scheduler types: `penstock quota …` and `python -m penstock.quota …`."""

import asyncio
import json
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from load.fill_ledger import fill
from penstock.cli import commands_audit
from penstock.cli.app import Common
from penstock.cli.groups import quota
from penstock.cli.state import State
from penstock.core.postgres_server import PrivateServer
from penstock.quota.audit import audit_dsn
from support.ledger import migrated_database
from support.small_ledger import SmallLedger

assert commands_audit.audit


@pytest.fixture
def small(small: SmallLedger, monkeypatch: pytest.MonkeyPatch) -> SmallLedger:
    monkeypatch.setenv("PENSTOCK_QUOTA_DSN", small.ledger.dsn)
    return small


async def typed(tmp_path: Path, *words: str) -> Result:
    """`penstock quota` with these words."""
    common = Common(State.at(tmp_path))
    return await asyncio.to_thread(CliRunner().invoke, quota, list(words), obj=common)


async def module(*words: str) -> tuple[int, Any]:
    """Exit status of `python -m penstock.quota`, and the document that it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.quota", *words,
        env=dict(os.environ), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    told, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(told) if told else None


async def test_a_ledger_is_audited_sealed_detached_and_pruned(
    small: SmallLedger, tmp_path: Path
) -> None:
    proven = await typed(tmp_path, "audit")
    sealed = await typed(tmp_path, "seal")
    again = await typed(tmp_path, "seal")
    detached = await typed(tmp_path, "detach", "--keep", "0")
    pruned = await typed(tmp_path, "prune")
    since = await typed(tmp_path, "audit", "--full", "--json")

    assert [0] * 6 == [r.exit_code for r in (proven, sealed, again, detached, pruned, since)]
    assert "26 entries, 6 reservations, 10 balances; 0.000000035 posted in all" in proven.output
    assert "epoch 1 is sealed: 7 balances and 2 open reservations" in sealed.output
    (digest,) = await small.ledger.fetch("SELECT digest FROM epochs WHERE id = 1")
    assert f"to be kept elsewhere: {digest[0].hex()}" in sealed.output
    assert "nothing to seal" in again.output
    assert "epoch 1 is in entries_archive_1" in detached.output
    assert "deleted 0 reservations" in pruned.output
    document = json.loads(since.stdout)
    kept = {"epoch": 1, "digest": digest[0].hex()}
    assert ([kept], []) == (document["verified_epochs"], document["gone_epochs"])
    assert (True, 1, 0, 35) == tuple(
        document[name] for name in ("ok", "base_epoch", "entries", "posted_nano_usd")
    )


async def test_a_ledger_that_does_not_add_up_is_an_exit_status(
    small: SmallLedger, tmp_path: Path
) -> None:
    await small.ledger.execute("UPDATE buckets SET posted = posted + 1 WHERE unit = 'nano_usd'")

    results = [
        await typed(tmp_path, *words) for words in (["audit"], ["audit", "--json"], ["seal"])
    ]

    assert [1, 1, 1] == [result.exit_code for result in results]
    assert all("the ledger does not add up" in result.output for result in results)
    assert "its entries say 35/20/20/0" in results[0].output
    assert not json.loads(results[1].stdout)["ok"]


async def test_a_dry_run_tells_what_would_be_and_changes_nothing(
    small: SmallLedger, tmp_path: Path
) -> None:
    steps = [
        (["seal"], "epoch 1 is sealed: 7 balances and 2 open reservations"),
        (["detach", "--keep", "0"], "epoch 1 is in entries_archive_1"),
        (["prune"], "4 reservations, 0 windows of rate limits, 0 rows of old"),
    ]
    for words, would in steps:
        if words == ["prune"]:
            await small.ledger.advance(timedelta(days=11))
        before = await everything(small)
        tried = await typed(tmp_path, *words, "--dry-run")
        document = json.loads((await typed(tmp_path, *words, "--dry-run", "--json")).stdout)
        assert (0, before) == (tried.exit_code, await everything(small)), tried.output
        assert "dry run: nothing was changed; it would be:" in tried.stderr
        assert would in tried.stdout
        assert (words == ["prune"]) == ("would delete" in tried.stdout)
        assert document["dry_run"]
        done = await typed(tmp_path, *words)
        # The digest of what is committed later is another one.
        assert would in done.output
        assert before != await everything(small)


async def test_a_dry_run_seals_no_ledger_that_does_not_add_up(
    small: SmallLedger, tmp_path: Path
) -> None:
    await small.ledger.execute("UPDATE buckets SET posted = posted + 1 WHERE unit = 'nano_usd'")

    result = await typed(tmp_path, "seal", "--dry-run")

    assert 1 == result.exit_code
    assert "the ledger does not add up" in result.output


async def everything(small: SmallLedger) -> list[tuple[str, int, str]]:
    """Of each table: its rows, and a hash of them."""
    names = await small.ledger.fetch(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r'"
        " AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    query = " UNION ALL ".join(
        f"SELECT '{name}', count(*), coalesce(md5(string_agg(t::text, '' ORDER BY t::text)), '')"
        f" FROM {name} t"
        for (name,) in names
    )
    return [tuple(row) for row in await small.ledger.fetch(query)]


@pytest.mark.parametrize("words", [["audit"], ["seal"], ["detach", "--keep", "1"], ["prune"]])
async def test_a_database_that_is_down_is_told_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        monkeypatch.setenv("PENSTOCK_QUOTA_DSN", f"postgresql://ann:hidden@127.0.0.1:{port}/quota")

        result = await typed(tmp_path, *words)
        status, _ = await module(*words)

    assert (1, 1) == (result.exit_code, status)
    assert f"the ledger's database does not answer at 127.0.0.1:{port}/quota" in result.output
    assert "Is PostgreSQL running?" in result.output
    assert "PENSTOCK_QUOTA_DSN" in result.output
    assert "hidden" not in result.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["detach"], "say --keep or --before"),
        (["detach", "--before", "soon"], "no date or time"),
        (["detach", "--keep", "-1"], "equal to 0"),
    ],
)
async def test_bad_usage_is_told(
    small: SmallLedger, tmp_path: Path, words: list[str], told: str
) -> None:
    result = await typed(tmp_path, *words)

    assert 2 == result.exit_code
    assert told in result.output


async def test_the_module_does_the_same_for_a_scheduler(small: SmallLedger) -> None:
    status, report = await module("audit")
    assert (0, True) == (status, report["ok"])
    status, tried = await module("seal", "--dry-run")
    assert (0, 1, True) == (status, tried["epoch"], tried["dry_run"])
    status, sealed = await module("seal")
    assert (0, 1, True) == (status, sealed["epoch"], sealed["proof"]["ok"])
    assert (0, {"ok": True, "epochs": [1]}) == await module("detach", "--before", "2100-01-01")
    status, pruned = await module("prune")
    assert (0, 0) == (status, pruned["reservations"])
    await small.ledger.execute("UPDATE buckets SET posted = posted + 1 WHERE unit = 'nano_usd'")
    status, report = await module("audit", "--full")
    assert (1, False) == (status, report["ok"])


async def test_a_filled_ledger_balances(postgres_server: PrivateServer) -> None:
    """What benchmarks and large audits are made with; twice, since a fill adds to what is there."""
    dsn = await migrated_database(postgres_server)

    first = await fill(dsn, accounts=250, entries=5_000)
    second = await fill(dsn, accounts=10, entries=2_000)
    report = await audit_dsn(dsn)

    assert [] == report.findings
    # One tells of each account, and one of its budget: 250 and 10 keys in 3 and 1 teams.
    assert (7_000 + 2 * (260 + 4 + 2), 3_500) == (report.entries, report.reservations)
    assert first.posted_nano_usd + second.posted_nano_usd == report.posted_nano_usd
    assert (first.first_key_id + 250, 1) == (second.first_org_id, second.orgs)
