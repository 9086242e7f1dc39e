"""`penstock clean`: removes all state of one machine."""

import shutil

import typer

from penstock.cli.app import Json, app, clear_faults, examples, out, print_json, state_of
from penstock.cli.errors import CliError
from penstock.cli.leftovers import sweep
from penstock.cli.lock import CLEAN, Busy, locked, told
from penstock.core import postgres_server


@app.command(epilog=examples("penstock clean"))
@clear_faults
def clean(context: typer.Context, as_json: Json = False) -> None:
    """Remove all state: ledger, cache, keys, traces, converted models. Refuses while it runs."""
    state = state_of(context)
    existed = state.root.exists()
    if existed:
        if not state.is_ours:
            raise CliError(
                f"{state.root} is no state folder of Penstock's: nothing in it is removed",
                remedy="Is it the right one? If so, remove it by hand.",
            )
        try:
            with locked(state, CLEAN):
                sweep(state)
                postgres_server.remove(state.postgres)
                shutil.rmtree(state.short_temp, ignore_errors=True)
                shutil.rmtree(state.root)
        except Busy:
            raise CliError(told(state), remedy="`make down` first, then `make clean`.") from None
    if as_json:
        print_json({"removed": existed})
    else:
        out.print(f"Removed {state.root}." if existed else "There is no state to remove.")
