"""What a person types after `penstock ledger …` and `alerts …`, as the ledger takes it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.cli import admin
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.state import State
from penstock.core.money import parse_usd

NEGATIVE_IS_NO_OPTION = {"ignore_unknown_options": True}
"""A command's setting: so that -1.50 is heard as an amount."""

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
"""As the contract has it."""

Since = Annotated[
    str | None,
    typer.Option(
        help="From this date or time on, UTC: 2026-11-01, 2026-11-01T12:00. Default: ever."
    ),
]
Until = Annotated[
    str | None, typer.Option(help="Up to this date or time, and not with it. Default: now.")
]
PageSize = Annotated[
    int, typer.Option(min=1, max=PAGE_SIZE_MAX, help="So many at once, newest first.")
]
PageToken = Annotated[
    str, typer.Option(help="next_page_token of the page before: shows what follows on it.")
]
All = Annotated[bool, typer.Option("--all", help="Every page, one after another.")]


def moment(text: str | None, name: str) -> Timestamp | None:
    """An ISO 8601 date or time, UTC where it names no zone.

    Raises:
        CliError: it is none, or lies out of what a timestamp can hold.
    """
    if text is None:
        return None
    stamp = Timestamp()
    try:
        value = datetime.fromisoformat(text)
        stamp.FromDatetime(value if value.tzinfo else value.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise CliError(
            f"{name} {text!r} is no date or time; write e.g. 2026-11-01 or 2026-11-01T12:00Z",
            code=BAD_USAGE,
        ) from None
    return stamp


def span(since: str | None, until: str | None) -> tuple[Timestamp | None, Timestamp | None]:
    """Of `--since` and `--until`.

    Raises:
        CliError: one is no moment, or the second does not lie after the first.
    """
    first, last = moment(since, "--since"), moment(until, "--until")
    if first is not None and last is not None and last.ToNanoseconds() <= first.ToNanoseconds():
        raise CliError(f"--until {until} does not lie after --since {since}", code=BAD_USAGE)
    return first, last


def amount(text: str, name: str = "AMOUNT") -> int:
    """USD in nano-USD; a minus gives back.

    Raises:
        CliError: it is no exact amount, or an option that is not there.
    """
    if text.startswith("--"):
        raise CliError(f"there is no option {text}", code=BAD_USAGE)
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if digits.startswith(("-", "+")):
        digits = text  # "--5" is no amount: parse_usd says so of the whole
    try:
        return sign * parse_usd(digits)
    except ValueError as error:
        raise CliError(f"{name}: {error}", code=BAD_USAGE) from None


def tags(given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE each.

    Raises:
        CliError: one is not.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CliError(f"--tag {text!r} is not NAME=VALUE, e.g. job=nightly", code=BAD_USAGE)
        found[name] = value
    return found


def ready_key(state: State) -> str:
    """The id of the key that `make up` made. Raises CliError: none is known here."""
    found = admin.settings(state).get(admin.KEY_ID)
    if not found:
        raise CliError("no ready-made key is known here: name an account", code=BAD_USAGE)
    return found


async def pages(
    page: Callable[[str], Awaitable[Any]], token: str, *, every: bool
) -> AsyncIterator[Any]:
    """The page after `token`; all that follow it, too, where every one is wanted."""
    while True:
        answer = await page(token)
        yield answer
        token = answer.next_page_token
        if not every or not token:
            return
