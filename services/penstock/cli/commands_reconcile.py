"""`penstock ledger reconcile`: a provider's usage and costs exports against the ledger."""

import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from penstock.cli import admin, names, processes
from penstock.cli.app import err
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import ledger
from penstock.cli.names import Named
from penstock.cli.operation import Call, Shown, answered, operation
from penstock.cli.options import config_path
from penstock.cli.reports import together
from penstock.cli.reports.faults import FaultyReport
from penstock.cli.reports.models import name_of, prices
from penstock.cli.reports.rows import Report
from penstock.cli.reports.together import Row
from penstock.cli.tables import plain
from penstock.core.catalogue import Catalogue
from penstock.core.config import ConfigError, load
from penstock.core.money import format_usd
from penstock.quota.v1 import admin_pb2

FILE_BYTES_MAX = 256 * 1024 * 1024
"""A year of a large organisation by day is some MiB; more is another file."""
ROWS_A_MESSAGE = 1_000
ANY = "*"

EXAMPLES = (
    "penstock ledger reconcile costs.json --since 2026-11-01 --until 2026-12-01 --dry-run",
    "penstock ledger reconcile costs.csv --account proj_abc=team:research --reason 'November'",
)


@operation(ledger, "reconcile", *EXAMPLES, changes=True)
async def reconcile(
    call: Call,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Answers of the provider's usage and costs API (JSON, all pages), or CSV exports.",
            metavar="FILE...",
        ),
    ],
    provider: Annotated[str, typer.Option(help="As the ledger's entries name it.")] = "openai",
    since: Annotated[
        str | None, typer.Option(help="First UTC day, e.g. 2026-11-01; default: of the files.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="The UTC day after the last one; default: of the files.")
    ] = None,
    account: Annotated[
        list[str] | None,
        typer.Option(
            help="PROJECT=ACCOUNT, PROJECT/KEY=ACCOUNT, /KEY=ACCOUNT or *=ACCOUNT (again for more):"
            " whose attempts stand behind a provider's project or key. None: everybody's, together."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The configuration, with models and prices.")
    ] = None,
) -> Shown | None:
    """Correct the ledger by what a provider billed, and report what no entry explains.

    Attempts in suspense and estimates are brought to what the provider billed for their day and
    model; exact ones stay. Days must be over and be in the files in full. Costs are taken as they
    are billed; where a day has usage alone, it is priced by the configuration. Running the same
    again changes nothing; a corrected export corrects the difference.
    """
    catalogue = _catalogue(call, config)
    reports, found = _read(files, provider, since, until, catalogue)
    options = admin_pb2.ReconcileOptions(
        provider=provider,
        since=_midnight(found[0]),
        until=_midnight(found[1]),
        accounts=[await _account(call, text) for text in account or ()],
        dry_run=bool(call.change and call.change.dry_run),
    )
    rows = _rows(reports, found, provider, catalogue)
    report = await _sent(call, options, rows, catalogue)
    priced = sum(row.priced for row in rows)
    return Shown(report, lambda known: _views(report, known, priced))


def _catalogue(call: Call, config: Path | None) -> Catalogue:
    running = processes.load(call.state)
    if config is None and running is not None:
        config = Path(running.options["config"])
    try:
        return load(config_path(config, os.environ))
    except ConfigError as error:
        raise CliError(str(error), remedy="`penstock config check` tells all faults.") from None


def _read(
    files: Sequence[Path],
    provider: str,
    since: str | None,
    until: str | None,
    catalogue: Catalogue,
) -> tuple[list[Report], tuple[date, date]]:
    """The files, and the days that are meant."""
    if catalogue.providers and provider not in catalogue.providers:
        known = ", ".join(sorted(catalogue.providers))
        err.print(
            f"  {provider} is none of the configuration's providers ({known})", style="yellow"
        )
    try:
        reports = [together.parse(str(path), _text(path)) for path in files]
    except FaultyReport as error:
        raise CliError(str(error), code=BAD_USAGE) from None
    first, last = together.span(reports)
    begin, end = _day("--since", since) or first, _day("--until", until) or last
    if begin >= end:
        raise CliError(f"--until {end} is not after --since {begin}", code=BAD_USAGE)
    return reports, (begin, end)


def _text(path: Path) -> str:
    if path.stat().st_size > FILE_BYTES_MAX:
        raise CliError(
            f"{path} has more than {FILE_BYTES_MAX >> 20} MiB",
            remedy="Export fewer days at once, by day (bucket_width=1d).",
            code=BAD_USAGE,
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CliError(
            f"{path}, byte {error.start}: is no UTF-8 text",
            remedy="Give the export as it came: JSON or CSV, not an archive or a workbook.",
            code=BAD_USAGE,
        ) from None


def _rows(
    reports: Sequence[Report], found: tuple[date, date], provider: str, catalogue: Catalogue
) -> list[Row]:
    price = prices(catalogue, provider)
    try:
        return together.rows(reports, since=found[0], until=found[1], price=price)
    except FaultyReport as error:
        raise CliError(str(error), code=BAD_USAGE) from None


def _day(name: str, text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise CliError(
            f"{name} {text!r} is no UTC day; write e.g. 2026-11-01", code=BAD_USAGE
        ) from None


def _midnight(day: date) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime(day.year, day.month, day.day, tzinfo=UTC))
    return stamp


async def _account(call: Call, text: str) -> admin_pb2.ReportedAccount:
    source, equals, name = text.partition("=")
    if not equals or not source or not name:
        raise CliError(
            f"--account {text!r} is not PROJECT=ACCOUNT, e.g. proj_abc=team:research",
            code=BAD_USAGE,
        )
    project, _, key = ("", "", "") if source == ANY else source.partition("/")
    found = await call.find(name, "org", "team", "key")
    return admin_pb2.ReportedAccount(project=project, key=key, account_id=found.id)


async def _sent(
    call: Call, options: admin_pb2.ReconcileOptions, rows: Sequence[Row], catalogue: Catalogue
) -> admin_pb2.ReconcileReport:
    """The ledger's report, with progress meanwhile."""
    found = await call.admin_service()
    metadata = call.change.metadata() if call.change else []
    answers: Any = found.stream("Reconcile", _requests(options, rows, catalogue), metadata)
    address = admin.access(call.state).address
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    report: admin_pb2.ReconcileReport | None = None
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as shown:
        task = shown.add_task("sending", total=len(rows))
        async for answer in answered(lambda error: admin.told(error, address), answers):
            _advance(shown, task, answer, len(rows))
            if answer.HasField("report"):
                report = answer.report
    if report is None:
        raise CliError("the ledger ended without a report; run the same again")
    return report


def _advance(
    shown: Progress, task: TaskID, answer: admin_pb2.ReconcileResponse, total: int
) -> None:
    sent = answer.rows_total >= total
    done = answer.rows_done if sent else answer.rows_total
    shown.update(task, description="reconciling" if sent else "sending", completed=done)


async def _requests(
    options: admin_pb2.ReconcileOptions, rows: Sequence[Row], catalogue: Catalogue
) -> AsyncIterator[admin_pb2.ReconcileRequest]:
    yield admin_pb2.ReconcileRequest(options=options)
    for n in range(0, len(rows), ROWS_A_MESSAGE):
        sent = [
            admin_pb2.ReportedRow(
                day=_midnight(row.day),
                model=name_of(catalogue, options.provider, row.model),
                project=row.project,
                key=row.key,
                requests=row.requests,
                prompt_tokens=row.prompt_tokens,
                cached_prompt_tokens=row.cached_prompt_tokens,
                completion_tokens=row.completion_tokens,
                amount_nano_usd=row.amount_nano_usd,
            )
            for row in rows[n : n + ROWS_A_MESSAGE]
        ]
        yield admin_pb2.ReconcileRequest(rows=admin_pb2.ReportedRows(rows=sent))


def _views(
    report: admin_pb2.ReconcileReport, known: Sequence[Named], priced: int
) -> list[str | Table]:
    amounts = ("reported USD", "posted before", "posted after", "suspense before", "drift")
    numbers = (*amounts, "requests")
    drops = ("requests", "posted before", "suspense before", "posted after", "account")
    table = plain("", "day", "model", "account", *numbers, right=numbers, drops=drops)
    for one in report.drifts:
        table.add_row(
            f"{one.day.ToDatetime():%Y-%m-%d}",
            one.model,
            names.label(known, one.account_id) if one.account_id else "",
            format_usd(one.reported_nano_usd),
            format_usd(one.posted_before_nano_usd),
            format_usd(one.posted_after_nano_usd),
            format_usd(one.suspense_before_nano_usd),
            format_usd(one.drift_nano_usd) if one.drift_nano_usd else "0",
            f"{one.reported_requests} / {one.posted_requests}",
        )
    drifted = [one for one in report.drifts if one.drift_nano_usd]
    total = sum(one.drift_nano_usd for one in drifted)
    resolved = f"{report.suspense_resolved} in suspense resolved"
    replaced = f"{report.estimates_adjusted} estimates replaced"
    adjusted = f"by {format_usd(report.adjusted_nano_usd)} USD in all"
    drift = f"drift in {len(drifted)} of {len(report.drifts)} days and models"
    lines = [f"{resolved}, {replaced} ({adjusted})", f"{drift}: {format_usd(total)} USD"]
    if priced:
        lines.append(f"{priced} rows had no cost and were priced by the configuration")
    return [table, *lines]
