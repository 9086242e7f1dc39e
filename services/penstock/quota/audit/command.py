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
        "checks": [{"name": c.name, "findings": list(c.findings)} for c in report.checks],
    }


def sealed_document(sealed: Sealed) -> dict[str, Any]:
    report = None if sealed.report is None else report_document(sealed.report)
    return {
        "ok": sealed.ok,
        "epoch": sealed.epoch,
        "buckets": sealed.buckets,
        "reservations": sealed.reservations,
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
    commands.add_parser("seal")
    detaching = commands.add_parser("detach")
    detaching.add_argument("--keep", type=int)
    detaching.add_argument("--before", type=moment)
    commands.add_parser("prune")
    options = parser.parse_args(arguments)
    try:
        document = asyncio.run(_done(options, dsn))
    except (Busy, ValueError, asyncpg.PostgresError) as error:
        logger.error("%s", error)  # noqa: TRY400 - told in one line; the place in our code is no help
        return WRONG
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0 if document["ok"] else WRONG


async def _done(options: argparse.Namespace, dsn: str) -> dict[str, Any]:
    match options.command:
        case "audit":
            return report_document(await audit_dsn(dsn, full=options.full, progress=_log))
        case "seal":
            return sealed_document(await seal(dsn, _log))
        case "detach":
            epochs = await detach(dsn, keep=options.keep, before=options.before, progress=_log)
            return {"ok": True, "epochs": epochs}
        case _:
            return {"ok": True, **dataclasses.asdict(await prune(dsn, _log))}


def _log(stage: str, done: int, total: int) -> None:
    logger.info("%s: %d of %d", stage, done, total)
