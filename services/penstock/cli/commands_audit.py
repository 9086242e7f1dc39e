"""`penstock quota audit | seal | detach | prune`: straight on the ledger's database."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated
from urllib.parse import urlsplit

import asyncpg
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from penstock.cli import admin
from penstock.cli.admin import Change
from penstock.cli.app import err, out, print_json, print_table
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import quota
from penstock.cli.operation import Call, DryRun, Shown, operation
from penstock.cli.state import State
from penstock.core import postgres
from penstock.core.money import format_usd
from penstock.quota import audit as ledger_audit
from penstock.quota.audit import AuditReport, Busy, Progress
from penstock.quota.audit.command import moment, report_document, sealed_document

POSTGRES_PORT = 5432
"""Where an address names none."""
WRONG = "the ledger does not add up: see above"


@operation(quota, "audit", "penstock quota audit", "penstock quota audit --full --json")
async def audit(
    call: Call,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Also what lies behind the newest checkpoint, and whether the entries of each"
            " sealed epoch are the ones that were sealed.",
        ),
    ] = False,
) -> Shown | None:
    """Recompute every balance from the entries, and name whatever differs. Changes nothing.

    Budgets, grants, accounts and keys are compared with the last entry about each. Reads one
    snapshot, while the ledger is in use. Exits with 1 where anything differs.
    """
    with _watched(call) as progress:
        report = await ledger_audit.audit_dsn(dsn_of(call.state), full=full, progress=progress)
    if call.as_json:
        print_json(report_document(report))
    else:
        _show_report(report)
    if not report.ok:
        raise CliError(WRONG)
    return None


@operation(quota, "seal", "penstock quota seal", "penstock quota seal --dry-run")
async def seal(call: Call, dry_run: DryRun = False) -> Shown | None:
    """Close the open epoch, prove its balances, and keep them as a checkpoint.

    From then on an audit begins there. Batches under way are not disturbed. If it is interrupted,
    run it again. Seals nothing, and exits with 1, where the ledger does not add up.
    """
    with _watched(call) as progress:
        sealed = await ledger_audit.seal(dsn_of(call.state), progress, dry_run=dry_run)
    if sealed.report is not None and not call.as_json:
        _show_report(sealed.report)
    if not sealed.ok:
        if call.as_json:
            print_json(sealed_document(sealed))
        raise CliError(
            WRONG, remedy="Nothing was sealed. Mend it by entries, then run the same again."
        )
    view = ["nothing to seal: no entry since the last one"]
    if sealed.epoch is not None:
        view = [
            (
                f"epoch {sealed.epoch} is sealed: {sealed.buckets} balances and"
                f" {sealed.reservations} open reservations are its checkpoint"
            ),
            f"the digest of its entries, to be kept elsewhere: {sealed.digest}",
        ]
    return _maybe(call, Shown(sealed_document(sealed), view), dry_run=dry_run)


@operation(
    quota,
    "detach",
    "penstock quota detach --keep 3",
    "penstock quota detach --before 2026-10-01 --dry-run",
)
async def detach(
    call: Call,
    keep: Annotated[
        int | None, typer.Option(min=0, help="So many of the newest sealed epochs stay.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="Only epochs that were closed before, e.g. 2026-10-01.")
    ] = None,
    dry_run: DryRun = False,
) -> Shown:
    """Take the entries of sealed epochs out of the ledger, into entries_archive_<epoch>.

    Never of one that is not sealed. The tables stay in the database until you drop them. What was
    taken out is no longer in `ledger entries` and `ledger usage`.
    """
    if keep is None and before is None:
        raise CliError("say --keep or --before: which epochs are to go", code=BAD_USAGE)
    with _watched(call) as progress:
        epochs = await ledger_audit.detach(
            dsn_of(call.state),
            keep=keep,
            before=_before(before),
            progress=progress,
            dry_run=dry_run,
        )
    view = [f"epoch {epoch} is in entries_archive_{epoch}" for epoch in epochs]
    shown = Shown({"ok": True, "epochs": epochs}, view or ["nothing to detach"])
    return _maybe(call, shown, dry_run=dry_run)


@operation(quota, "prune", "penstock quota prune", "penstock quota prune --dry-run")
async def prune(call: Call, dry_run: DryRun = False) -> Shown:
    """Delete old resolved reservations and closed windows of rate limits.

    Only what is beyond the horizon of ids (7 days and one) and behind a detached epoch.
    """
    with _watched(call) as progress:
        pruned = await ledger_audit.prune(dsn_of(call.state), progress, dry_run=dry_run)
    deleted = "would delete" if dry_run else "deleted"
    view = (
        f"{deleted} {pruned.reservations} reservations, {pruned.windows} windows of rate limits,"
        f" {pruned.checkpoint_rows} rows of old checkpoints"
    )
    shown = Shown({"ok": True, **dataclasses.asdict(pruned)}, [view])
    return _maybe(call, shown, dry_run=dry_run)


def _maybe(call: Call, shown: Shown, *, dry_run: bool) -> Shown:
    """Told as what would be, where it is a dry run: there is no entry of it, so nobody is named."""
    if dry_run:
        call.change = Change(actor="", dry_run=True)
    return shown


def dsn_of(state: State) -> str:
    """Of the ledger's database. Raises CliError: it is not known here."""
    found = admin.settings(state).get(admin.QUOTA_DSN)
    if not found:
        raise CliError(
            "the ledger's database is not known here",
            remedy=f"Start Penstock with `make up`, or set {admin.QUOTA_DSN}.",
        )
    return found


def _address(dsn: str) -> str:
    """Host, port and name of the database, without a password."""
    parts = urlsplit(dsn)
    return f"{parts.hostname or 'localhost'}:{parts.port or POSTGRES_PORT}{parts.path}"


@contextmanager
def _watched(call: Call) -> Iterator[Progress]:
    """A bar a stage, on a terminal; what the database refuses, or that it is away, as a line."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bars = Bars(
        *columns,
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def told(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        with bars:
            yield told
    except Busy as error:
        raise CliError(str(error)) from None
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        raise CliError(
            "the ledger's schema is missing or old", remedy="Run `penstock quota migrate`."
        ) from None
    except Exception as error:
        if postgres.is_outage(error):
            raise CliError(
                f"the ledger's database does not answer at {_address(dsn_of(call.state))}",
                remedy="Is PostgreSQL running? `penstock status` tells; where it is:"
                f" {admin.QUOTA_DSN}. Nothing is half-done: run the same again.",
            ) from None
        if isinstance(error, asyncpg.PostgresError):
            raise CliError(f"the ledger's database refuses: {error}") from None
        raise


def _before(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return moment(text)
    except ValueError:
        raise CliError(
            f"--before {text!r} is no date or time; write e.g. 2026-10-01", code=BAD_USAGE
        ) from None


def _show_report(report: AuditReport) -> None:
    table = Table(box=None)
    for check in report.checks:
        mark = "[red]✗[/]" if check.findings else "[green]✓[/]"
        table.add_row(mark, check.name, "\n".join(check.findings))
    print_table(table)
    since = f" since the checkpoint of epoch {report.base_epoch}" if report.base_epoch else ""
    out.print(
        f"{report.entries} entries{since}, {report.reservations} reservations, "
        f"{report.buckets} balances; {format_usd(report.posted_nano_usd)} posted in all"
        f" ({report.posted_nano_usd} nano-USD)"
    )
    if report.verified_epochs or report.gone_epochs:
        gone = f"; of {len(report.gone_epochs)} they are no longer here" * bool(report.gone_epochs)
        count = len(report.verified_epochs)
        epochs = "1 sealed epoch" if count == 1 else f"{count} sealed epochs"
        out.print(f"the entries of {epochs} were read{gone}")
    for epoch, digest in report.verified_epochs[-1:]:
        out.print(f"the digest of epoch {epoch}, and so of all before it: {digest}")
