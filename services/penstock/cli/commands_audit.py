"""`penstock quota audit | seal | detach | prune`: straight on the ledger's database."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import asyncpg
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from penstock.cli import admin
from penstock.cli.app import err, out, print_json, print_table
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import quota
from penstock.cli.operation import Call, Shown, operation
from penstock.cli.state import State
from penstock.core.money import format_usd
from penstock.quota import audit as ledger_audit
from penstock.quota.audit import AuditReport, Busy, Progress
from penstock.quota.audit.command import moment, report_document, sealed_document

WRONG = "the ledger does not add up: see above"


@operation(quota, "audit", "penstock quota audit", "penstock quota audit --full --json")
async def audit(
    call: Call,
    full: Annotated[
        bool,
        typer.Option("--full", help="Also what lies behind the newest checkpoint."),
    ] = False,
) -> Shown | None:
    """Recompute every balance from the entries, and name whatever differs. Changes nothing.

    Reads one snapshot, while the ledger is in use. Exits with 1 where anything differs.
    """
    with _watched() as progress:
        report = await ledger_audit.audit_dsn(dsn_of(call.state), full=full, progress=progress)
    if call.as_json:
        print_json(report_document(report))
    else:
        _show_report(report)
    if not report.ok:
        raise CliError(WRONG)
    return None


@operation(quota, "seal", "penstock quota seal")
async def seal(call: Call) -> Shown | None:
    """Close the open epoch, prove its balances, and keep them as a checkpoint.

    From then on an audit begins there. Batches under way are not disturbed. If it is interrupted,
    run it again. Seals nothing, and exits with 1, where the ledger does not add up.
    """
    with _watched() as progress:
        sealed = await ledger_audit.seal(dsn_of(call.state), progress)
    if call.as_json:
        print_json(sealed_document(sealed))
    elif sealed.epoch is None:
        out.print("nothing to seal: no entry since the last one")
    elif sealed.report is not None:
        _show_report(sealed.report)
        if sealed.ok:
            out.print(
                f"epoch {sealed.epoch} is sealed: {sealed.buckets} balances and"
                f" {sealed.reservations} open reservations are its checkpoint"
            )
    if not sealed.ok:
        raise CliError(
            WRONG, remedy="Nothing was sealed. Mend it by entries, then run the same again."
        )
    return None


@operation(
    quota,
    "detach",
    "penstock quota detach --keep 3",
    "penstock quota detach --before 2026-10-01",
)
async def detach(
    call: Call,
    keep: Annotated[
        int | None, typer.Option(min=0, help="So many of the newest sealed epochs stay.")
    ] = None,
    before: Annotated[
        str | None, typer.Option(help="Only epochs that were closed before, e.g. 2026-10-01.")
    ] = None,
) -> Shown:
    """Take the entries of sealed epochs out of the ledger, into entries_archive_<epoch>.

    Never of one that is not sealed. The tables stay in the database until you drop them.
    """
    if keep is None and before is None:
        raise CliError("say --keep or --before: which epochs are to go", code=BAD_USAGE)
    with _watched() as progress:
        epochs = await ledger_audit.detach(
            dsn_of(call.state), keep=keep, before=_before(before), progress=progress
        )
    view = [f"epoch {epoch} is in entries_archive_{epoch}" for epoch in epochs]
    return Shown({"ok": True, "epochs": epochs}, view or ["nothing to detach"])


@operation(quota, "prune", "penstock quota prune")
async def prune(call: Call) -> Shown:
    """Delete old resolved reservations and closed windows of rate limits.

    Only what is beyond the horizon of ids (7 days and one) and behind a detached epoch.
    """
    with _watched() as progress:
        pruned = await ledger_audit.prune(dsn_of(call.state), progress)
    view = (
        f"deleted {pruned.reservations} reservations, {pruned.windows} windows of rate limits,"
        f" {pruned.checkpoint_rows} rows of old checkpoints"
    )
    return Shown({"ok": True, **dataclasses.asdict(pruned)}, [view])


def dsn_of(state: State) -> str:
    """Of the ledger's database. Raises CliError: it is not known here."""
    found = admin.settings(state).get(admin.QUOTA_DSN)
    if not found:
        raise CliError(
            "the ledger's database is not known here",
            remedy=f"Start Penstock with `make up`, or set {admin.QUOTA_DSN}.",
        )
    return found


@contextmanager
def _watched() -> Iterator[Progress]:
    """A bar a stage, on a terminal; what the database refuses as a line."""
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
    except asyncpg.UndefinedTableError:
        raise CliError(
            "the ledger's schema is missing or old", remedy="Run `penstock quota migrate`."
        ) from None
    except asyncpg.PostgresError as error:
        raise CliError(f"the ledger's database refuses: {error}") from None


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
