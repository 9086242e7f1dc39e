"""`penstock limit`: requests, tokens and requests in flight."""

import dataclasses
import re
from typing import Annotated

import typer

from penstock.cli.account_tables import limits_table
from penstock.cli.as_json import as_dict
from penstock.cli.catalogue_names import warn_of_scope
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import limit
from penstock.cli.limit_arguments import (
    Everything,
    Model,
    Provider,
    Tag,
    TimeZone,
    meant,
    new_name,
    scope,
    setting_id,
    time_zone,
    window,
    window_name,
)
from penstock.cli.limit_changes import changes
from penstock.cli.operation import ACCOUNT_HELP, Call, Shown, operation
from penstock.quota.v1 import admin_pb2

RATE_WINDOWS = ("minute", "hour", "day", "week", "month")
LIMIT_MAX = 10**15
"""As the contract has it."""


@operation(
    limit,
    "set",
    "penstock limit set key:ci --requests 60/minute --tokens 100000/day",
    "penstock limit set key:ci --in-flight 4",
    "penstock limit set pool:openai --tokens 200000/minute --model 'gpt-4o*'",
    changes=True,
)
async def set_(
    call: Call,
    account: Annotated[str, typer.Argument(help=ACCOUNT_HELP, metavar="ACCOUNT")],
    requests: Annotated[
        list[str] | None, typer.Option(help="NUMBER/WINDOW, e.g. 60/minute (again for more).")
    ] = None,
    tokens: Annotated[
        list[str] | None,
        typer.Option(help="Input and output: NUMBER/WINDOW, e.g. 100000/day (again for more)."),
    ] = None,
    in_flight: Annotated[
        str | None, typer.Option(help="So many requests at one time, e.g. 4.")
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            help="Of the limit: a-z, 0-9 and -; told in refusals. Default: unit and window."
        ),
    ] = "",
    zone: TimeZone = "",
    provider: Provider = None,
    model: Model = None,
    tag: Tag = None,
    everything: Everything = False,
) -> Shown:
    """Make or change rate limits.

    Windows are minute, hour, day, week (from Monday) and month.

    Without --name it is the open one of that unit, window and scope. 0 lets nothing through.
    Several at once: each is checked before the first is made.
    """
    wanted = scope(provider, model, tag, everything=everything)
    rates = [rate("--requests", t, admin_pb2.RateLimit.UNIT_REQUESTS) for t in requests or ()]
    rates += [rate("--tokens", t, admin_pb2.RateLimit.UNIT_TOKENS) for t in tokens or ()]
    if in_flight is not None:
        rates.append(concurrency(in_flight))
    if not rates:
        raise CliError(
            "no limit is given: say --requests, --tokens or --in-flight, e.g. --requests 60/minute",
            code=BAD_USAGE,
        )
    _demand_different(rates)
    if name and len(rates) > 1:
        raise CliError("--name is of one limit: set them one after another", code=BAD_USAGE)
    named_zone = time_zone(zone)
    of = await call.find(account)
    listed = await _limits(call, of.id)
    for one in rates:
        one.account_id, one.time_zone = of.id, named_zone
        _complete(one, list(listed.limits), name, wanted)
    found = await _set_all(call, rates)
    warn_of_scope(call.state, provider, model)
    document = {"limits": [as_dict(one) for one in found]}
    return Shown(document, lambda known: [limits_table(found, known), *changes(found)])


def _demand_different(rates: list[admin_pb2.SetRateLimitRequest]) -> None:
    """The last of two of one unit and window would silently undo the first."""
    kinds = [(one.unit, one.window) for one in rates]
    twice = next((kind for n, kind in enumerate(kinds) if kind in kinds[:n]), None)
    if twice is not None:
        unit = admin_pb2.RateLimit.Unit.Name(twice[0]).removeprefix("UNIT_").lower()
        raise CliError(
            f"--{unit} is given twice for one {window_name(twice[1])}: which is meant?",
            code=BAD_USAGE,
        )


async def _set_all(
    call: Call, rates: list[admin_pb2.SetRateLimitRequest]
) -> list[admin_pb2.RateLimit]:
    """All or, where one of them is refused, none."""
    making = call.change
    if len(rates) > 1 and making is not None and not making.dry_run:
        call.change = dataclasses.replace(making, dry_run=True)
        for one in rates:
            await call.ask("SetRateLimit", one, admin_pb2.RateLimit)
        call.change = making
    return [await call.ask("SetRateLimit", one, admin_pb2.RateLimit) for one in rates]


def _complete(
    one: admin_pb2.SetRateLimitRequest,
    there: list[admin_pb2.RateLimit],
    name: str,
    wanted: admin_pb2.Scope | None,
) -> None:
    """With the name of the one that is there, or of a new one, and with the scope."""
    like = there if name else [x for x in there if (x.unit, x.window) == (one.unit, one.window)]
    old = meant(like, name, wanted, "limit")
    if old is None and not name:
        # A closed one of this name may have another scope, which would stay.
        wanted = wanted or admin_pb2.Scope()
    unit = admin_pb2.RateLimit.Unit.Name(one.unit).removeprefix("UNIT_").lower().replace("_", "-")
    base = f"{unit}-{window_name(one.window)}"
    taken = {x.name for x in there if not x.closed}
    one.name = old.name if old else name or new_name(base, wanted, taken)
    if wanted is not None:
        one.scope.CopyFrom(wanted)


def rate(
    option: str, text: str, unit: "admin_pb2.RateLimit.Unit.ValueType"
) -> admin_pb2.SetRateLimitRequest:
    """Of `60/minute`. Raises CliError: it is none."""
    number, slash, per = text.partition("/")
    if not slash:
        raise CliError(
            f"{option} {text!r}: write NUMBER/WINDOW, e.g. 60/minute; windows are"
            f" {', '.join(RATE_WINDOWS)}",
            code=BAD_USAGE,
        )
    try:
        value = window(per, *RATE_WINDOWS)
    except CliError as error:
        raise CliError(f"{option} {text!r}: {error.message}", code=BAD_USAGE) from None
    return admin_pb2.SetRateLimitRequest(unit=unit, window=value, limit=_count(option, number))


def concurrency(text: str) -> admin_pb2.SetRateLimitRequest:
    """Raises CliError: it is no number."""
    return admin_pb2.SetRateLimitRequest(
        unit=admin_pb2.RateLimit.UNIT_IN_FLIGHT,
        window=admin_pb2.Budget.WINDOW_TOTAL,
        limit=_count("--in-flight", text),
    )


def _count(option: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > LIMIT_MAX:
        raise CliError(
            f"{option}: {text!r} is no whole number of 0 to {LIMIT_MAX}; 0 lets nothing through",
            code=BAD_USAGE,
        )
    return int(text)


@operation(
    limit,
    "list",
    "penstock limit list",
    "penstock limit list --account pool:openai --closed --json",
)
async def list_(
    call: Call,
    account: Annotated[str | None, typer.Option(help=f"Only its own. {ACCOUNT_HELP}")] = None,
    closed: Annotated[bool, typer.Option("--closed", help="Closed ones too.")] = False,
) -> Shown:
    """Rate limits: how much is used of each now, and when it resets."""
    listed = await _limits(call, await call.find_id(account))
    found = [x for x in listed.limits if closed or not x.closed]
    document = admin_pb2.ListRateLimitsResponse(limits=found)
    return Shown(document, lambda known: [limits_table(found, known)])


@operation(
    limit,
    "close",
    "penstock limit close limit_4",
    "penstock limit close requests-minute --account key:ci",
    changes=True,
)
async def close(
    call: Call,
    name: Annotated[str, typer.Argument(help="Its id, or its name.", metavar="LIMIT")],
    account: Annotated[str | None, typer.Option(help=f"Whose. {ACCOUNT_HELP}")] = None,
) -> Shown:
    """From now on it limits nothing. `limit set` opens it again."""
    listed = await _limits(call, await call.find_id(account))
    found_id = setting_id(listed.limits, name, "limit", await call.known())
    request = admin_pb2.CloseRateLimitRequest(limit_id=found_id)
    found = await call.ask("CloseRateLimit", request, admin_pb2.RateLimit)
    return Shown(found, lambda known: [limits_table([found], known)])


async def _limits(call: Call, account_id: str) -> admin_pb2.ListRateLimitsResponse:
    request = admin_pb2.ListRateLimitsRequest(account_id=account_id)
    return await call.ask("ListRateLimits", request, admin_pb2.ListRateLimitsResponse)
