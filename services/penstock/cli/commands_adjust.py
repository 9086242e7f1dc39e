"""`penstock ledger adjust | resolve`: corrections by hand, each an entry with who and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.text import Text

from penstock.cli.account_tables import scope_text
from penstock.cli.as_json import as_dict
from penstock.cli.entry_table import entries_table
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import ledger
from penstock.cli.ledger_arguments import NEGATIVE_IS_NO_OPTION, amount
from penstock.cli.names import LISTED_MAX, Named, below, label, levels
from penstock.cli.operation import ACCOUNT_HELP, Call, Shown, View, operation
from penstock.cli.tables import plain
from penstock.core.money import format_usd
from penstock.quota.v1 import admin_pb2, quota_pb2

RESOLVED = "RESOLVED_BY_OPERATOR"
"""Outcome of an attempt in suspense of which an operator found out what it cost."""


@operation(
    ledger,
    "adjust",
    "penstock ledger adjust 1.25 --account team:acme/search --key invoice-17 --reason 'invoice 17'",
    "penstock ledger adjust -0.40 --reservation 0192… --key refund-9 --reason 'provider refunded'",
    changes=True,
    reason_needed=True,
    settings=NEGATIVE_IS_NO_OPTION,
)
async def adjust(
    call: Call,
    usd: Annotated[str, typer.Argument(help="USD, e.g. 1.25; -1.25 gives back.", metavar="AMOUNT")],
    key: Annotated[
        str, typer.Option(help="Of your choosing: with the same one it is made once only.")
    ],
    account: Annotated[
        str | None, typer.Option(help=f"On its open budgets and those above it. {ACCOUNT_HELP}")
    ] = None,
    reservation: Annotated[
        str,
        typer.Option(
            help="On the budgets and grants of one settled attempt: its id, of `ledger entries`."
        ),
    ] = "",
) -> Shown:
    """Post an amount, or give one back, on an account or on one attempt.

    On an account: on its open budgets and those above it, also on those for some providers, models
    or tags only; it says on which. At most what was posted can be given back. Again with the same
    key: answers with the entry that is there. The reason is kept in the entry.
    """
    if (account is None) == (not reservation):
        raise CliError("say --account or --reservation: one of them", code=BAD_USAGE)
    request = admin_pb2.AdjustRequest(
        reservation_id=reservation, amount_nano_usd=amount(usd), adjustment_key=key
    )
    reach = None
    if account is not None:
        of = await call.find(account)
        request.account_id = of.id
        reach = await _reach(call, of)
    entry, done_before = await call.ask_once("Adjust", request, quota_pb2.Entry)
    if reach is None or done_before:  # the budgets of now do not tell where it was posted then
        return Shown(entry, lambda known: [entries_table([entry], known)], done_before=done_before)
    return Shown(
        {**as_dict(entry), **reach.document()},
        lambda known: [entries_table([entry], known), *reach.views(known)],
        done_before=False,
    )


@dataclass(frozen=True, slots=True)
class _Reach:
    """On which budgets an adjustment of an account is posted, and on which it is not, with why."""

    posted_on: Sequence[admin_pb2.Budget]
    left_out: Sequence[tuple[admin_pb2.Budget, str]]

    def document(self) -> dict[str, Any]:
        return {
            "posted_on": [_named(b) for b in self.posted_on],
            "left_out": [_named(b) for b, _ in self.left_out],
        }

    def views(self, known: Sequence[Named]) -> list[View]:
        table = plain("", "budget", "of", "only for", "posted on", drops=("only for",))
        rows = [(b, "yes, whole") for b in self.posted_on]
        rows += [(b, f"no: {why}") for b, why in self.left_out[:LISTED_MAX]]
        for one, told in rows:
            of = label(known, one.account_id)
            table.add_row(Text(one.name), of, Text(scope_text(one.scope)), told)
        more = len(self.left_out) - LISTED_MAX
        return [
            table,
            *([f"{more} more are left out (--json has all)"] if more > 0 else []),
            "Credit, and limits in requests or tokens, are left as they are.",
        ]


async def _reach(call: Call, account: Named) -> _Reach:
    request = admin_pb2.ListBudgetsRequest()
    listed = (await call.ask("ListBudgets", request, admin_pb2.ListBudgetsResponse)).budgets
    known = await call.known()
    at = {one.id for one in levels(known, account)}
    under = {one.id for one in below(known, account)}
    closed = [(b, "closed") for b in listed if b.account_id in at and b.closed]
    lower = [(b, "below it") for b in listed if b.account_id in under and not b.closed]
    return _Reach([b for b in listed if b.account_id in at and not b.closed], closed + lower)


def _named(budget: admin_pb2.Budget) -> dict[str, str]:
    return {"id": budget.id, "name": budget.name, "account_id": budget.account_id}


@operation(
    ledger,
    "resolve",
    "penstock ledger resolve 0192… 0.0031 --reason 'in the provider’s dashboard'",
    "penstock ledger resolve 0192… 0 --reason 'not billed'",
    changes=True,
    reason_needed=True,
    settings=NEGATIVE_IS_NO_OPTION,
)
async def resolve(
    call: Call,
    reservation: Annotated[
        str,
        typer.Argument(
            help="Id of the abandoned attempt: `penstock ledger entries --operation expire`.",
            metavar="RESERVATION",
        ),
    ],
    usd: Annotated[
        str,
        typer.Argument(help="What it cost in USD; 0: it was not billed.", metavar="AMOUNT"),
    ],
    outcome: Annotated[str, typer.Option(help="UPPER_SNAKE, kept in the entry.")] = RESOLVED,
) -> Shown:
    """Say what an abandoned paid attempt cost: it leaves suspense, and the rest is free again.

    `penstock ledger reconcile` does it for all of them by the provider's own export.
    """
    cost = amount(usd)
    if cost < 0:
        raise CliError(f"AMOUNT: {usd}: what an attempt cost is not negative", code=BAD_USAGE)
    request = quota_pb2.SettleRequest(
        reservation_id=reservation, amount_nano_usd=cost, outcome=outcome
    )
    answer = await call.ask("ResolveSuspense", request, quota_pb2.SettleResponse)
    posted, released = answer.posted_nano_usd, answer.released_nano_usd
    over = ": more than it held, and posted all the same" if answer.overage else ""
    return Shown(
        answer, [f"{format_usd(posted)} USD posted, {format_usd(released)} USD free again{over}"]
    )
