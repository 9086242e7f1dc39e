"""`penstock alerts list | test`: what somebody should know of, and whether it arrives."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from penstock.cli.admin import Change
from penstock.cli.as_json import as_dict
from penstock.cli.errors import CliError
from penstock.cli.groups import alerts
from penstock.cli.ledger_arguments import PAGE_SIZE_DEFAULT, All, PageSize, PageToken, pages
from penstock.cli.operation import ACCOUNT_HELP, Call, DryRun, Shown, View, operation
from penstock.cli.tables import plain, when
from penstock.quota.v1 import admin_pb2

WEBHOOKS = "PENSTOCK_ALERTS_WEBHOOKS"

KINDS_HELP = (
    "budget_threshold, budget_exhaustion_forecast, overage, late_settle, suspense_old, drift,"
    " grant_expiring or test."
)


@operation(
    alerts,
    "list",
    "penstock alerts list",
    "penstock alerts list --kind overage --account org:acme --all --json",
)
async def list_alerts(
    call: Call,
    kind: Annotated[str, typer.Option(help=KINDS_HELP)] = "",
    account: Annotated[str | None, typer.Option(help=f"Only of this one. {ACCOUNT_HELP}")] = None,
    page_size: PageSize = PAGE_SIZE_DEFAULT,
    page_token: PageToken = "",
    every: All = False,
) -> Shown:
    """What was told of, newest first, and how many webhooks took it."""
    wanted = admin_pb2.ListAlertsRequest(kind=kind, page_size=page_size)
    wanted.account_id = await call.find_id(account)

    async def page(token: str) -> admin_pb2.ListAlertsResponse:
        wanted.page_token = token
        return await call.ask("ListAlerts", wanted, admin_pb2.ListAlertsResponse)

    found = admin_pb2.ListAlertsResponse()
    async for answer in pages(page, page_token, every=every):
        found.alerts.extend(answer.alerts)
        found.next_page_token = answer.next_page_token
    return Shown(found, _views(found))


def _views(found: admin_pb2.ListAlertsResponse) -> list[View]:
    if not found.alerts:
        return ["no alert"]
    table = plain("", "at", "kind", "what", "delivered", "last error", drops=("last error", "kind"))
    for alert in found.alerts:
        table.add_row(
            when(alert.at),
            alert.kind,
            Text(alert.message),
            f"{alert.delivered} of {alert.deliveries}" if alert.deliveries else "no webhook",
            Text(alert.last_error, style="red"),
        )
    views: list[View] = [table]
    if found.next_page_token:
        views.append(f"there are more: --page-token {found.next_page_token}, or --all")
    return views


@operation(alerts, "test", "penstock alerts test", "penstock alerts test --dry-run --json")
async def send_test(call: Call, dry_run: DryRun = False) -> Shown | None:
    """Send a test to every webhook now, and say how each answered; --dry-run only shows it.

    Exits with 1 where one did not take it, or where there is none to send it to.
    """
    if dry_run:
        call.change = Change.of("", "", dry_run=True)
    answer = await call.ask(
        "TestAlerts", admin_pb2.TestAlertsRequest(), admin_pb2.TestAlertsResponse
    )
    if answer.deliveries or call.as_json:
        bodies = [f"to {one.host}: {one.body}" for one in answer.deliveries if dry_run]
        await call.show(Shown(as_dict(answer), [_deliveries(answer), *bodies]))
    failed = sum(1 for one in answer.deliveries if one.error)
    if failed and not dry_run:
        raise CliError(
            f"{failed} of {len(answer.deliveries)} webhooks did not take it",
            remedy=f"Check {WEBHOOKS} of the quota processes, and the receivers.",
        )
    if not answer.deliveries and dry_run:
        if not call.as_json:
            await call.show(Shown(as_dict(answer), _nowhere(answer.example_body)))
        return None
    if not answer.deliveries:
        raise CliError(
            "no webhook is configured: alerts are only logged and listed here",
            remedy=f"Set {WEBHOOKS} and PENSTOCK_ALERTS_SECRET of the quota processes.",
        )
    return None


def _nowhere(body: str) -> list[View]:
    """What a webhook would be sent, were there one."""
    return [
        f"no webhook is configured ({WEBHOOKS} of the quota processes): it would go nowhere",
        "a webhook would be sent:",
        body,
    ]


def _deliveries(answer: admin_pb2.TestAlertsResponse) -> Table:
    table = plain("", "webhook", "shape", "status", "seconds", "result", right=("seconds",))
    for one in answer.deliveries:
        table.add_row(
            Text(one.host),
            one.shape,
            str(one.status or ""),
            f"{one.seconds:.2f}",
            Text(one.error, style="red") if one.error else Text("taken", style="green"),
        )
    return table
