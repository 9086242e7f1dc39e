"""`penstock grant`: prepaid credit."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cli import periods
from penstock.cli.account_tables import grants_table
from penstock.cli.catalogue_names import warn_of_scope
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import grant
from penstock.cli.ledger_arguments import NEGATIVE_IS_NO_OPTION, amount, moment
from penstock.cli.limit_arguments import Model, Provider, Tag, scope
from penstock.cli.names import Named
from penstock.cli.operation import ACCOUNT_HELP, Call, Shown, View, operation
from penstock.quota.v1 import admin_pb2


@operation(
    grant,
    "create",
    "penstock grant create 18 --account org:acme --key welcome-acme --for 3mo",
    "penstock grant create 2 --account key:ada --key bug-4711 --reason 'found bug 4711'",
    "penstock grant create 2500 --account pool:openai --key openai-2026 --commercial-use",
    "penstock grant create 50 --account team:acme/search --key trial --starts 2026-12-01"
    " --expires 2027-03-01 --model 'gpt-4o*'",
    changes=True,
    settings=NEGATIVE_IS_NO_OPTION,
)
async def create(
    call: Call,
    usd: Annotated[str, typer.Argument(help="USD, e.g. 18 or 12.50.", metavar="AMOUNT")],
    account: Annotated[str, typer.Option(help=f"Whose. {ACCOUNT_HELP}")],
    key: Annotated[
        str, typer.Option(help="Of your choosing: with the same one it is made once only.")
    ],
    name: Annotated[str, typer.Option(help="A name for people. Default: the key.")] = "",
    starts: Annotated[
        str | None, typer.Option(help="Date or time, e.g. 2026-12-01 (UTC). Default: now.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Date or time, e.g. 2027-03-01 (UTC). Default: never.")
    ] = None,
    lasts: Annotated[
        str | None,
        typer.Option("--for", help="How long from its start: 24h, 30d, 2w, 3mo, 1y."),
    ] = None,
    provider: Provider = None,
    model: Model = None,
    tag: Tag = None,
    commercial_use: Annotated[
        bool,
        typer.Option(
            "--commercial-use/--non-commercial",
            help="Whether commercial accounts may use it; a free tier is non-commercial.",
        ),
    ] = False,
) -> Shown:
    """Give credit. It is used soonest-ending first; what is left at its end lapses.

    Again with the same key: answers with the one that is there, and says so. The reason is kept.
    """
    if lasts is not None and expires is not None:
        raise CliError("--for goes not with --expires: say one", code=BAD_USAGE)
    nano_usd = amount(usd)
    if nano_usd <= 0:
        raise CliError(
            f"AMOUNT: {usd}: credit is more than 0 USD; `penstock grant end` ends one",
            code=BAD_USAGE,
        )
    request = admin_pb2.CreateGrantRequest(
        grant_key=key,
        name=name or key,
        reason=call.change.reason if call.change else "",
        amount_nano_usd=nano_usd,
        starts_at=moment(starts, "--starts"),
        expires_at=moment(expires, "--expires"),
        scope=scope(provider, model, tag),
        commercial_use=commercial_use,
    )
    if lasts is not None:
        periods.after(datetime.now(UTC), lasts, "--for")  # refused before the ledger is asked
    request.account_id = await call.find_id(account)
    if lasts is not None:
        there = [g for g in (await _grants(call, "")).grants if g.grant_key == key]
        _set_end(request, there, lasts)
    made, done_before = await call.ask_once("CreateGrant", request, admin_pb2.Grant)
    warn_of_scope(call.state, provider, model)
    return Shown(made, _view(made), done_before=done_before)


def _set_end(
    request: admin_pb2.CreateGrantRequest, there: Sequence[admin_pb2.Grant], lasts: str
) -> None:
    """From the start of the one that is there: so the same words again ask for the same."""
    if not request.HasField("starts_at"):
        request.starts_at.CopyFrom(there[0].starts_at if there else _now())
    starts_at = request.starts_at.ToDatetime(tzinfo=UTC)
    request.expires_at.FromDatetime(periods.after(starts_at, lasts, "--for"))


def _now() -> Timestamp:
    """Of a whole second: credit that begins at once has begun, whatever the clocks' fractions."""
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC).replace(microsecond=0))
    return stamp


@operation(
    grant,
    "list",
    "penstock grant list",
    "penstock grant list --account org:acme --json",
)
async def list_(
    call: Call,
    account: Annotated[str | None, typer.Option(help=f"Only its own. {ACCOUNT_HELP}")] = None,
) -> Shown:
    """Credit, also what has ended: what is used, held, lapsed and left; soonest-ending first."""
    listed = await _grants(call, await call.find_id(account))
    return Shown(listed, lambda known: [grants_table(listed.grants, known)])


@operation(
    grant,
    "end",
    "penstock grant end grant_5",
    "penstock grant end welcome-acme --reason 'contract is over'",
    changes=True,
)
async def end(
    call: Call,
    name: Annotated[str, typer.Argument(help="Its id, or its key.", metavar="GRANT")],
) -> Shown:
    """End credit now: what is not held lapses, and what is held once it comes back."""
    listed = (await _grants(call, "")).grants
    found = [g.id for g in listed if name == g.id] or [g.id for g in listed if name == g.grant_key]
    if not found:
        raise CliError(
            f"there is no grant {name!r}", remedy="`penstock grant list` has them.", code=BAD_USAGE
        )
    request = admin_pb2.EndGrantRequest(grant_id=found[0])
    ended = await call.ask("EndGrant", request, admin_pb2.Grant)
    return Shown(ended, _view(ended))


async def _grants(call: Call, account_id: str) -> admin_pb2.ListGrantsResponse:
    request = admin_pb2.ListGrantsRequest(account_id=account_id)
    return await call.ask("ListGrants", request, admin_pb2.ListGrantsResponse)


def _view(one: admin_pb2.Grant) -> Callable[[Sequence[Named]], Sequence[View]]:
    return lambda known: [grants_table([one], known)]
