"""What a person types of budgets and rate limits: scopes, windows, names."""

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Annotated, TypeVar
from zoneinfo import available_timezones

import typer

from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.ledger_arguments import tags
from penstock.cli.names import LISTED_MAX, Named, label
from penstock.quota.v1 import admin_pb2

Provider = Annotated[
    list[str] | None,
    typer.Option(
        "--provider",
        help="Only this one of penstock.yaml, or local (again for more); * is any characters.",
    ),
]
Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="Only this one: gpt-4o, openai/gpt-4o, 'gpt-4o*' (again for more)."
    ),
]
Tag = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        help="Only requests with this tag: NAME=VALUE, e.g. job=nightly (again: all of them).",
    ),
]
Everything = Annotated[
    bool, typer.Option("--everything", help="Applies to every provider, model and tag again.")
]
TimeZone = Annotated[
    str,
    typer.Option(
        "--time-zone", "--zone", help="Of the calendar, e.g. Europe/Berlin; default: stays, or UTC."
    ),
]

WINDOWS: dict[str, "admin_pb2.Budget.Window.ValueType"] = {
    "minute": admin_pb2.Budget.WINDOW_MINUTE,
    "hour": admin_pb2.Budget.WINDOW_HOUR,
    "day": admin_pb2.Budget.WINDOW_DAY,
    "week": admin_pb2.Budget.WINDOW_WEEK,
    "month": admin_pb2.Budget.WINDOW_MONTH,
    "total": admin_pb2.Budget.WINDOW_TOTAL,
}

NAME_CHARACTERS_MAX = 64
"""Of a budget's or limit's name, as the contract has it."""

PERCENTS_MAX = 8
PERCENT_MAX = 100

Setting = TypeVar("Setting", admin_pb2.Budget, admin_pb2.RateLimit)


def scope(
    providers: Sequence[str] | None,
    models: Sequence[str] | None,
    given_tags: Sequence[str] | None,
    *,
    everything: bool = False,
) -> admin_pb2.Scope | None:
    """None: nothing was said of it.

    Raises:
        CliError: a tag is not NAME=VALUE; or it is to be narrow and everything.
    """
    narrow = bool(providers or models or given_tags)
    if narrow and everything:
        raise CliError(
            "--everything goes not with --provider, --model or --tag: say one", code=BAD_USAGE
        )
    if not narrow and not everything:
        return None
    return admin_pb2.Scope(
        providers=providers or (), models=models or (), tags=tags(given_tags or ())
    )


def window(text: str, *known: str) -> "admin_pb2.Budget.Window.ValueType":
    """Raises CliError: it is not among the known ones (none given: all)."""
    names = known or tuple(WINDOWS)
    if text not in names:
        raise CliError(f"{text!r} is no window; there are: {', '.join(names)}", code=BAD_USAGE)
    return WINDOWS[text]


def window_name(value: "admin_pb2.Budget.Window.ValueType") -> str:
    return admin_pb2.Budget.Window.Name(value).removeprefix("WINDOW_").lower()


def time_zone(text: str) -> str:
    """Raises CliError: no zone bears that name."""
    if text and text not in available_timezones() | {"UTC"}:
        raise CliError(
            f"--time-zone {text!r} is not known; write an IANA name, e.g. Europe/Berlin or UTC",
            code=BAD_USAGE,
        )
    return text


def percents(text: str) -> list[int]:
    """`50,80,100`.

    Raises:
        CliError: not at most 8 whole numbers of 1 to 100, ascending.
    """
    words = text.split(",")
    found = [int(w) for w in words if re.fullmatch(r"[0-9]{1,3}", w.strip())]
    ascending = all(a < b for a, b in pairwise(found))
    fits = len(found) == len(words) <= PERCENTS_MAX and found[0] >= 1 and found[-1] <= PERCENT_MAX
    if not (fits and ascending):
        raise CliError(
            f"--soft {text!r}: write at most {PERCENTS_MAX} per cents of 1 to {PERCENT_MAX},"
            " ascending, e.g. 50,80,100",
            code=BAD_USAGE,
        )
    return found


def meant(
    there: Sequence[Setting], name: str, wanted: admin_pb2.Scope | None, what: str
) -> Setting | None:
    """Which of an account's (of one window and unit, where no name is given) is to be changed.

    Without a name the open one of the same scope, so that nobody has to know how it is called.

    Raises:
        CliError: there are several.
    """
    if name:
        return next((one for one in there if one.name == name), None)
    asked = _parts(wanted or admin_pb2.Scope())
    hits = [one for one in there if not one.closed and _parts(one.scope) == asked]
    if len(hits) > 1:
        names = ", ".join(f"{one.name} ({one.id})" for one in hits)
        raise CliError(
            f"it has {len(hits)} {what}s of this window: {names}; say which by --name",
            code=BAD_USAGE,
        )
    return hits[0] if hits else None


def _parts(of: admin_pb2.Scope) -> tuple[frozenset[str], frozenset[str], frozenset[object]]:
    return frozenset(of.providers), frozenset(of.models), frozenset(of.tags.items())


def new_name(base: str, of: admin_pb2.Scope | None, taken: Collection[str]) -> str:
    """`day`; where it is narrower, what makes it so comes after: `day-openai`. Where that is taken,
    a number: `day-openai-2`.
    """
    of = of or admin_pb2.Scope()
    words = [*of.providers, *of.models, *(f"{n}-{v}" for n, v in sorted(of.tags.items()))]
    plain = [re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") or "any" for word in words]
    name = fitting = "-".join([base, *plain])[:NAME_CHARACTERS_MAX].rstrip("-")
    number = 1
    while fitting in taken:
        number += 1
        suffix = f"-{number}"
        fitting = name[: NAME_CHARACTERS_MAX - len(suffix)] + suffix
    return fitting


def setting_id(there: Sequence[Setting], text: str, what: str, known: Sequence[Named] = ()) -> str:
    """The id that an id or a name means; open ones before closed ones.

    `known`: everything that has a name, so that a refusal can tell whose each of several is.

    Raises:
        CliError: none, or several.
    """
    hits = [one for one in there if text == one.id] or [one for one in there if text == one.name]
    if len(hits) > 1:
        hits = [one for one in hits if not one.closed] or hits
    if len(hits) == 1:
        return hits[0].id
    if hits:
        ids = ", ".join(f"{one.id} (of {label(known, one.account_id)})" for one in hits)
        raise CliError(
            f"{text!r} is more than one {what}: {ids}; write its id, or say --account",
            code=BAD_USAGE,
        )
    open_ones = [one for one in there if not one.closed]
    told = ", ".join(f"{one.name} ({one.id})" for one in open_ones[:LISTED_MAX]) or "none"
    told += ", …" * (len(open_ones) > LISTED_MAX)
    raise CliError(
        f"there is no {what} {text!r}; there are: {told}",
        remedy=f"`penstock {what} list --closed` has all.",
        code=BAD_USAGE,
    )
