"""`penstock config`: the one file that an operator writes."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from penstock.cli import config_in_use, processes
from penstock.cli.app import Json, app, clear_faults, err, examples, out, print_json, state_of
from penstock.cli.errors import CliError
from penstock.cli.options import DEFAULT_CONFIG, config_path
from penstock.core.config import ConfigError, load

config = typer.Typer(help="penstock.yaml: check it, show it, start from the example.")
app.add_typer(config, name="config")


@config.command(
    epilog=examples("penstock config check", "penstock config check penstock.yaml --json")
)
@clear_faults
def check(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: that of `penstock up`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """All faults at once, each with its line."""
    found = path or config_path(None, os.environ)
    try:
        catalogue = load(found)
    except ConfigError as error:
        if as_json:
            print_json({"ok": False, "faults": error.faults})
            raise typer.Exit(1) from None
        raise CliError(str(error), remedy=_in_use(context, found)) from None
    summary = {
        "models": len(catalogue.models),
        "providers": len(catalogue.providers),
        "paid_models": sum(len(p.models) for p in catalogue.providers.values()),
        "aliases": len(catalogue.aliases),
    }
    if as_json:
        print_json({"ok": True, "faults": [], **summary})
    else:
        counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in summary.items())
        out.print(f"{found}: good ({counts})")


@config.command(epilog=examples("penstock config example"))
@clear_faults
def example() -> None:
    """The commented example, which is the default: `penstock config example > penstock.yaml`."""
    sys.stdout.write(DEFAULT_CONFIG.read_text(encoding="utf-8"))


@config.command(
    epilog=examples("penstock config show", "penstock config show penstock.yaml --json")
)
@clear_faults
def show(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: that of `penstock up`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The file as it is understood, defaults filled in; prices in nano-USD a million tokens."""
    found = path or config_path(None, os.environ)
    try:
        catalogue = load(found)
    except ConfigError as error:
        raise CliError(str(error), remedy=_in_use(context, found)) from None
    if note := _in_use(context, found):
        err.print(Text(f"  {note}", style="yellow"))
    value = catalogue.model_dump(mode="json")
    if as_json:
        print_json(value)
        return
    from ruamel.yaml import YAML

    YAML().dump(value, sys.stdout)


def _in_use(context: typer.Context, path: Path) -> str:
    """What there is to say where a Penstock runs with this file, as it was before; else empty."""
    state = state_of(context)
    running = processes.load(state)
    if running is None or running.supervisor.process() is None:
        return ""
    if Path(running.options["config"]) != path.resolve():
        return ""
    if not config_in_use.why_not_in_use(state, running):
        return ""
    shown = f"`penstock config show {state.config_in_use}`"
    return f"This is not what the Penstock here has in use; that is: {shown}."
