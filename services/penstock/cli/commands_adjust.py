"""`penstock ledger adjust | resolve`: corrections by hand, each an entry with who and why."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from penstock.cli.account_tables import scope_text
from penstock.cli.as_json import as_dict
from penstock.cli.entry_table import entries_table
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import ledger
from penstock.cli.ledger_arguments import NEGATIVE_IS_NO_OPTION, amount
from penstock.cli.names import Named, label
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
    or tags only; not on those below it, nor on credit. It says on which. At most what was posted
    can be given back. Again with the same key: answers with the entry that is there. The reason is
    kept in the entry.
    """
    if (account is None) == (not reservation):
        raise CliError("say --account or --reservation: one of them", code=BAD_USAGE)
    request = admin_pb2.AdjustRequest(
        reservation_id=reservation, amount_nano_usd=amount(usd), adjustment_key=key
    )
    request.account_id = await call.find_id(account)
    answer, done_before = await call.ask_once("Adjust", request, admin_pb2.AdjustResponse)
    document = as_dict(answer)
    return Shown(
        {**document.pop("entry"), **document},
        lambda known: [entries_table([answer.entry], known), _posted(answer.posted_on, known)],
        done_before=done_before,
    )


def _posted(on: Sequence[admin_pb2.PostedOn], known: Sequence[Named]) -> View:
    table = plain(
        "", "posted on", "id", "of", "only for", "USD", right=("USD",), drops=("only for",)
    )
    for one in on:
        of = label(known, one.account_id)
        usd = format_usd(one.amount_nano_usd)
        table.add_row(Text(one.name), one.id, of, Text(scope_text(one.scope)), usd)
    return table


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
