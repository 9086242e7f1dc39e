"""`penstock ledger balance`: what is left, now or as it changes."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from penstock.cli.account_tables import scope_text
from penstock.cli.app import has_width, not_shown, out, print_table
from penstock.cli.as_json import as_dict
from penstock.cli.balance_tables import balance_views
from penstock.cli.errors import CliError
from penstock.cli.groups import ledger
from penstock.cli.ledger_arguments import ready_key
from penstock.cli.names import levels
from penstock.cli.operation import ACCOUNT_HELP, Call, Shown, View, operation
from penstock.cli.tables import Listed, fitted, when_exactly, widest
from penstock.core.money import format_usd
from penstock.quota.v1 import quota_pb2

INTERVAL_MS_MIN = 100
INTERVAL_MS_MAX = 60_000
INTERVAL_MS_DEFAULT = 1_000
"""As the contract has them."""


@operation(
    ledger,
    "balance",
    "penstock ledger balance",
    "penstock ledger balance team:acme/search --json",
    "penstock ledger balance pool:openai --watch",
)
async def balance(
    call: Call,
    account: Annotated[
        str | None,
        typer.Argument(
            help=f"{ACCOUNT_HELP} A key: its whole path. Default: the ready-made key.",
            metavar="ACCOUNT",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Again whenever it changes, until Ctrl-C.")
    ] = False,
    interval_ms: Annotated[
        int,
        typer.Option(
            min=INTERVAL_MS_MIN, max=INTERVAL_MS_MAX, help="With --watch: at most each so many ms."
        ),
    ] = INTERVAL_MS_DEFAULT,
) -> Shown | None:
    """What is left: budgets, prepaid credit and rate limits.

    Credit that there is and that does not apply now is told with why: it has not begun, has ended,
    is used up, or is not for commercial accounts. A key's are also those of its team and
    organisation, by name; of a team, a line says what its organisation has. With --watch and --json
    one document a line.
    """
    of = await call.find(account or ready_key(call.state))
    is_pool = of.kind == "pool"
    if watch:
        request = quota_pb2.WatchBalanceRequest(account_id=of.id, interval_ms=interval_ms)
        await _follow(call, call.stream("WatchBalance", request), needs_budget=not is_pool)
        raise CliError("the ledger ended the watch: it stops or restarts", remedy="Watch again.")
    asked = quota_pb2.GetBalanceRequest(account_id=of.id)
    found = await call.ask("GetBalance", asked, quota_pb2.Balance)
    if of.kind != "team" or call.as_json:
        return Shown(found, lambda known: balance_views(found, known, needs_budget=not is_pool))
    org = levels(await call.known(), of)[0]
    asked = quota_pb2.GetBalanceRequest(account_id=org.id)
    its = await call.ask("GetBalance", asked, quota_pb2.Balance)
    told = _credit([g for g in its.grants if g.commercial_use or not of.commercial])
    if its.budgets and not found.budgets:
        told.insert(0, f"Its organisation has budgets{'.' if told else ':'}")
    above = [*told, f"  penstock ledger balance {org.full}"] if told else []
    needs = not its.budgets
    return Shown(found, lambda known: [*balance_views(found, known, needs_budget=needs), *above])


def _credit(grants: Sequence[quota_pb2.GrantBalance]) -> list[View]:
    """Of an organisation, as a team is told it."""
    usable = [g for g in grants if g.remaining_nano_usd > 0]
    if not usable:
        return []
    left = format_usd(sum(g.remaining_nano_usd for g in usable))
    limits = {_limits(grant) for grant in usable}
    line = f"Its organisation has credit too, {left} USD, which its keys may draw on"
    if limits == {""}:
        return [f"{line}:"]
    some = "some" if "" in limits else "all"
    return [line, f"({some} of it for {'; or '.join(sorted(limits - {''}))} only):"]


def _limits(grant: quota_pb2.GrantBalance) -> str:
    use = "" if grant.commercial_use else "non-commercial use"
    return ", ".join(filter(None, (scope_text(grant), use)))


async def _follow(
    call: Call, watched: AsyncIterator[quota_pb2.Balance], *, needs_budget: bool
) -> None:
    if call.as_json:
        async for one in watched:
            sys.stdout.write(json.dumps(as_dict(one), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        return
    known = await call.known()
    with ExitStack() as stack:
        live: Live | None = None
        async for one in watched:
            views = balance_views(one, known, needs_budget=needs_budget, watched=True)
            views = [part for view in views for part in _narrowed(view)]
            if out.is_terminal and _fits(views):
                live = live or stack.enter_context(Live(console=out, auto_refresh=False))
                live.update(Group(_at(one), *views), refresh=True)
            else:
                # Drawn in place, a table wider than the terminal would lose its figures.
                _print(_at(one), views)


def _narrowed(view: View) -> list[View]:
    """With a line of what it lacks."""
    if not (has_width() and isinstance(view, Listed)):
        return [view]
    table, dropped = fitted(view, out, out.width)
    return [table, not_shown(dropped)] if dropped else [table]


def _fits(views: Sequence[View]) -> bool:
    return all(widest(view, out) <= out.width for view in views if isinstance(view, Table))


def _at(one: quota_pb2.Balance) -> str:
    return f"at {when_exactly(one.at)}"


def _print(at: str, views: Sequence[View]) -> None:
    out.print(at)
    for view in views:
        if isinstance(view, Table):
            print_table(view)
        else:
            out.print(view)
