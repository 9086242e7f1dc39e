"""`penstock ledger usage`, also `penstock usage`: what was spent."""

from typing import Annotated

import typer

from penstock.cli.app import app
from penstock.cli.as_json import as_dict
from penstock.cli.entry_table import detached_note
from penstock.cli.groups import ledger
from penstock.cli.ledger_arguments import Since, Until, span
from penstock.cli.ledger_tables import usage_table
from penstock.cli.operation import ACCOUNT_HELP, Call, Shown, operation
from penstock.quota.v1 import admin_pb2


async def usage(
    call: Call,
    account: Annotated[str | None, typer.Option(help=f"Only of this one. {ACCOUNT_HELP}")] = None,
    since: Since = None,
    until: Until = None,
) -> Shown:
    """What was spent, by key, provider and model, exact to the nano-USD."""
    first, last = span(since, until)
    request = admin_pb2.GetUsageRequest(since=first, until=last)
    request.account_id = await call.find_id(account)
    report = await call.ask("GetUsage", request, admin_pb2.GetUsageResponse)
    total = sum(row.posted_nano_usd for row in report.rows)
    document = {**as_dict(report), "total_posted_nano_usd": total}
    note = [detached_note(report.detached)] if report.HasField("detached") else []
    return Shown(document, lambda known: [usage_table(report.rows, known), *note])


for group, typed in ((app, "penstock usage"), (ledger, "penstock ledger usage")):
    operation(
        group, "usage", typed, f"{typed} --account team:acme/search --since 2026-11-01 --json"
    )(usage)
