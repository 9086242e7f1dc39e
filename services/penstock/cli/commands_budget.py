"""`penstock budget`: how much may be spent, on what, in which time."""

from typing import Annotated

import typer

from penstock.cli.account_tables import budgets_table
from penstock.cli.catalogue_names import warn_of_scope
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import budget
from penstock.cli.ledger_arguments import NEGATIVE_IS_NO_OPTION, amount, ready_key
from penstock.cli.limit_arguments import (
    Everything,
    Model,
    Provider,
    Tag,
    TimeZone,
    meant,
    new_name,
    percents,
    scope,
    setting_id,
    time_zone,
    window,
)
from penstock.cli.limit_changes import changes
from penstock.cli.operation import ACCOUNT_HELP, Call, Shown, operation
from penstock.quota.v1 import admin_pb2

WINDOW_DEFAULT = "month"

Limit = Annotated[
    str,
    typer.Argument(
        help="USD, e.g. 12.50; 0 stops all spending; or [bold]unlimited[/].", metavar="LIMIT"
    ),
]
Soft = Annotated[
    str | None,
    typer.Option(
        help="Per cents of the limit at which it warns: at most 8, ascending, e.g. 80,95."
        " Default: stays, or 50,80,100."
    ),
]


@operation(
    budget,
    "set",
    "penstock budget set 5 --account key:ci",
    "penstock budget set 500 --account org:acme --window month --zone Europe/Berlin",
    "penstock budget set 20 --account team:acme/search --window day --provider openai",
    "penstock budget set unlimited --account key:ci --window total --soft 80,100",
    changes=True,
    settings=NEGATIVE_IS_NO_OPTION,
)
async def set_(
    call: Call,
    limit: Limit,
    account: Annotated[
        str | None, typer.Option(help=f"{ACCOUNT_HELP} Default: the ready-made key.")
    ] = None,
    window_kind: Annotated[
        str | None,
        typer.Option(
            "--window",
            help="minute, hour, day, week (from Monday), month (calendar) or total.",
            show_default=WINDOW_DEFAULT,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            help="Of the budget: a-z, 0-9 and -. Default: of the one that is there, or the window."
        ),
    ] = "",
    zone: TimeZone = "",
    provider: Provider = None,
    model: Model = None,
    tag: Tag = None,
    everything: Everything = False,
    soft: Soft = None,
) -> Shown:
    """Make or change the budget of an account, window and scope.

    Without --name it is the open one of that window and scope. A new one counts from now on; a
    limit below what is spent stops admission, nothing else.
    """
    wanted = scope(provider, model, tag, everything=everything)
    nano_usd = limit_nano_usd(limit)
    value = window(base := window_kind or WINDOW_DEFAULT)
    request = admin_pb2.SetBudgetRequest(
        time_zone=time_zone(zone), soft_percents=percents(soft) if soft is not None else ()
    )
    request.account_id = await call.find_id(account or ready_key(call.state))
    there = list((await _budgets(call, request.account_id)).budgets)
    like = there if name else [b for b in there if b.window == value]
    old = meant(like, name, wanted, "budget")
    if old is None or window_kind is not None:
        request.window = value
    if old is None and not name:
        # A closed one of this name may have another scope, which would stay.
        wanted = wanted or admin_pb2.Scope()
    taken = {one.name for one in there if not one.closed}
    request.name = old.name if old else name or new_name(base, wanted, taken)
    if wanted is not None:
        request.scope.CopyFrom(wanted)
    if old is not None and soft is None:
        request.soft_percents.extend(old.soft_percents)
    if nano_usd is None:
        request.unlimited = True
    else:
        request.limit_nano_usd = nano_usd
    made = await call.ask("SetBudget", request, admin_pb2.Budget)
    warn_of_scope(call.state, provider, model)
    return Shown(made, lambda known: [budgets_table([made], known), *changes([made])])


def limit_nano_usd(text: str) -> int | None:
    """None: unlimited.

    Raises:
        CliError: it is no limit.
    """
    if text == "unlimited":
        return None
    if text.startswith("-") and not text.startswith("--"):
        raise CliError(
            f"LIMIT: {text}: a limit cannot be negative; 0 stops all spending", code=BAD_USAGE
        )
    try:
        return amount(text, "LIMIT")
    except CliError as error:
        raise CliError(f"{error.message}; or write unlimited", code=error.code) from None


@operation(
    budget,
    "list",
    "penstock budget list",
    "penstock budget list --account org:acme --closed --json",
)
async def list_(
    call: Call,
    account: Annotated[str | None, typer.Option(help=f"Only its own. {ACCOUNT_HELP}")] = None,
    closed: Annotated[bool, typer.Option("--closed", help="Closed ones too.")] = False,
) -> Shown:
    """Budgets: limit, posted, held, in suspense, left, reset."""
    listed = await _budgets(call, await call.find_id(account))
    found = [b for b in listed.budgets if closed or not b.closed]
    document = admin_pb2.ListBudgetsResponse(budgets=found)
    return Shown(document, lambda known: [budgets_table(found, known)])


@operation(
    budget,
    "close",
    "penstock budget close budget_4",
    "penstock budget close day-openai --account team:acme/search --reason 'trial is over'",
    changes=True,
)
async def close(
    call: Call,
    name: Annotated[str, typer.Argument(help="Its id, or its name.", metavar="BUDGET")],
    account: Annotated[str | None, typer.Option(help=f"Whose. {ACCOUNT_HELP}")] = None,
) -> Shown:
    """From now on it limits nothing; its balances stay. `budget set` opens it again.

    Where no open budget applies to a key any more, its requests are refused.
    """
    listed = await _budgets(call, await call.find_id(account))
    found_id = setting_id(listed.budgets, name, "budget", await call.known())
    request = admin_pb2.CloseBudgetRequest(budget_id=found_id)
    closed = await call.ask("CloseBudget", request, admin_pb2.Budget)
    return Shown(closed, lambda known: [budgets_table([closed], known)])


async def _budgets(call: Call, account_id: str) -> admin_pb2.ListBudgetsResponse:
    request = admin_pb2.ListBudgetsRequest(account_id=account_id)
    return await call.ask("ListBudgets", request, admin_pb2.ListBudgetsResponse)
