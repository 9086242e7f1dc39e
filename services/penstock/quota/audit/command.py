"""`python -m penstock.quota audit | seal | detach | prune`, for a scheduler. People have
`penstock quota`.
"""

import argparse
import asyncio
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg

from penstock.core import postgres
from penstock.quota.audit.auditor import audit_dsn
from penstock.quota.audit.detaching import detach
from penstock.quota.audit.pruning import prune
from penstock.quota.audit.report import AuditReport, Busy
from penstock.quota.audit.sealing import Sealed, seal

logger = logging.getLogger("penstock.quota")

COMMANDS = ("audit", "seal", "detach", "prune")
WRONG = 1
"""Exit status: the ledger does not add up, or a lock could not be had."""


def report_document(report: AuditReport) -> dict[str, Any]:
    """As JSON has it; amounts are int."""
    return {
        "ok": report.ok,
        "base_epoch": report.base_epoch,
        "entries": report.entries,
        "reservations": report.reservations,
        "buckets": report.buckets,
        "posted_nano_usd": report.posted_nano_usd,
        "verified_epochs": [
            {"epoch": epoch, "digest": digest} for epoch, digest in report.verified_epochs
        ],
        "gone_epochs": list(report.gone_epochs),
        "checks": [{"name": c.name, "findings": list(c.findings)} for c in report.checks],
    }


def sealed_document(sealed: Sealed) -> dict[str, Any]:
    report = None if sealed.report is None else report_document(sealed.report)
    return {
        "ok": sealed.ok,
        "epoch": sealed.epoch,
        "buckets": sealed.buckets,
        "reservations": sealed.reservations,
        "digest": sealed.digest,
        "proof": report,
    }


def moment(text: str) -> datetime:
    """An ISO 8601 date or time, UTC where it names no zone. Raises ValueError."""
    value = datetime.fromisoformat(text)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def run(arguments: Sequence[str], dsn: str) -> int:
    """Does it, prints one JSON document to stdout, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m penstock.quota")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("audit").add_argument("--full", action="store_true")
    changing = {name: commands.add_parser(name) for name in ("seal", "detach", "prune")}
    for one in changing.values():
        one.add_argument("--dry-run", action="store_true")
    changing["detach"].add_argument("--keep", type=int)
    changing["detach"].add_argument("--before", type=moment)
    options = parser.parse_args(arguments)
    try:
        document = asyncio.run(_done(options, dsn))
    except Exception as error:
        if postgres.is_outage(error):
            told = f"the ledger's database does not answer: {error}"
        elif isinstance(error, Busy | ValueError | asyncpg.PostgresError):
            told = str(error)
        else:
            raise
        logger.error("%s", told)  # noqa: TRY400 - told in one line; the place in our code is no help
        return WRONG
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0 if document["ok"] else WRONG


async def _done(options: argparse.Namespace, dsn: str) -> dict[str, Any]:
    if options.command == "audit":
        return report_document(await audit_dsn(dsn, full=options.full, progress=_log))
    dry_run = options.dry_run
    match options.command:
        case "seal":
            document = sealed_document(await seal(dsn, _log, dry_run=dry_run))
        case "detach":
            which = {"keep": options.keep, "before": options.before}
            epochs = await detach(dsn, **which, progress=_log, dry_run=dry_run)
            document = {"ok": True, "epochs": epochs}
        case _:
            pruned = await prune(dsn, _log, dry_run=dry_run)
            document = {"ok": True, **dataclasses.asdict(pruned)}
    return {**document, "dry_run": True} if dry_run else document


def _log(stage: str, done: int, total: int) -> None:
    logger.info("%s: %d of %d", stage, done, total)
