"""The command line's frame: options that all commands share, and faults as clear lines."""

import asyncio
import functools
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from penstock.cli.errors import CliError
from penstock.cli.state import FOLDER_DEFAULT, State
from penstock.cli.tables import Listed, fitted, widest
from penstock.core.errors import PenstockError

P = ParamSpec("P")
T = TypeVar("T")

INTERRUPTED = 130
"""A shell's own status for Ctrl-C."""

ORDER = (
    "up", "down", "status", "chat", "models", "explain", "trace", "usage", "account", "keys",
    "budget", "limit", "grant", "pool", "ledger", "alerts", "quota", "config", "clean",
)  # fmt: skip
"""Of the commands in the help: by what a person does, not by the modules' names."""


class _Ordered(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=_Ordered,
    name="penstock",
    help="The gate for LLM traffic: own models, a paid API, a cache, budgets that hold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON; amounts are whole nano-USD (1 USD: 10^9).")
]


@dataclass(frozen=True, slots=True)
class Common:
    state: State


def state_of(context: typer.Context) -> State:
    common = context.obj
    assert isinstance(common, Common)
    return common.state


def examples(*typed: str) -> str:
    """A command's epilog: each on a line of its own, as rich takes it."""
    head = "Example:" if len(typed) == 1 else "Examples:"
    return "\n\n".join([head, *(f"  {escape(one)}" for one in typed)])


@app.callback()
def _common(
    context: typer.Context,
    state: Path = typer.Option(  # noqa: B008 - typer's way of declaring an option
        Path(FOLDER_DEFAULT), help="State folder.", envvar="PENSTOCK_STATE"
    ),
) -> None:
    context.obj = Common(State.at(state))


def print_table(table: Table) -> None:
    """An amount is never broken or cut: a terminal that is too narrow for a list is shown fewer
    columns, and told which it lacks; any other table is as wide as it needs to be.
    """
    dropped: list[str] = []
    if isinstance(table, Listed) and table.drops and has_width():
        table, dropped = fitted(table, out, out.width)
    print_wide(table, widest(table, out))
    if dropped:
        out.print(escape(not_shown(dropped)), style="dim")


def not_shown(dropped: Sequence[str]) -> str:
    """What is told below a list that lacks columns."""
    return f"not shown for want of width: {', '.join(dropped)} (--json has all)"


def has_width() -> bool:
    """Whoever reads it sees so many columns; a file or another program takes any."""
    return out.is_terminal or "COLUMNS" in os.environ


def print_wide(what: RenderableType, width_min: int) -> None:
    """At least so wide; a narrower terminal breaks the lines itself."""
    Console(highlight=False, width=max(width_min, out.width)).print(what, crop=False)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fail(error: CliError) -> NoReturn:
    err.print(f"[bold red]penstock:[/] {escape(error.message)}")
    if error.remedy:
        err.print(f"  → {escape(error.remedy)}")
    raise typer.Exit(error.code)


def clear_faults(command: Callable[P, T]) -> Callable[P, T]:
    """A command whose faults are told in a line, without a traceback; its status is then not 0."""

    @functools.wraps(command)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except CliError as error:
            fail(error)
        except PenstockError as error:
            fail(CliError(f"{error.reason}: {error.message}"))
        except BrokenPipeError:
            # `penstock … | head`: what was wanted has been read.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            fail(CliError(f"{error.strerror or error}{where}"))

    return told


def awaited(command: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """An async command as typer calls it."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return asyncio.run(command(*args, **kwargs))

    return run
