"""`penstock up`, `penstock down`: one machine's Penstock."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli import lock, options, preflight, processes, welcome
from penstock.cli.app import Json, app, clear_faults, err, examples, out, print_json, state_of
from penstock.cli.child import describe_exit, tail
from penstock.cli.down import down as end
from penstock.cli.errors import CliError
from penstock.cli.state import State, read_env
from penstock.cli.up import READY_FD, facts_of
from penstock.cli.up import up as run
from penstock.core.config import ConfigError, load
from penstock.core.log import put_aside


@app.command(epilog=examples("penstock up", "penstock up --paid stand-in --detach --json"))
@clear_faults
def up(
    context: typer.Context,
    paid: Annotated[
        str | None, typer.Option(help="[bold]stand-in[/]: llama.cpp plays the paid API. Env: PAID.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="llamacpp (default) or vllm. Env: ENGINE.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="penstock.yaml. Env: PENSTOCK_CONFIG.")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Default 7070. Env: PENSTOCK_GRPC_PORT.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Default 7080. Env: PENSTOCK_HTTP_PORT.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is up.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --detach: print the facts.")
    ] = False,
) -> None:
    """Start everything on this machine and keep it running; Ctrl-C stops it."""
    state = state_of(context)
    wanted = options.read(
        os.environ,
        paid=paid,
        engine=engine,
        config=config,
        grpc_port=grpc_port,
        http_port=http_port,
    )
    try:
        if detach:
            _detached(state, wanted, as_json=as_json)
        else:
            run(out, state, wanted)
    except lock.Busy:
        _tell_running(state, wanted, as_json=as_json)


def _tell_running(state: State, wanted: options.UpOptions, *, as_json: bool) -> None:
    running, holder = processes.load(state), lock.holder(state)
    if running is None or holder is None or holder.pid != running.supervisor.pid:
        raise CliError(
            f"{lock.told(state)}: it has just begun, or is about to end",
            remedy="`penstock status` tells how it is, `penstock down` ends it.",
        )
    pid = holder.pid
    facts = facts_of(state, paid="")
    if differing := _differing(running, wanted):
        lines = "".join(f"\n  {line}" for line in differing)
        raise CliError(
            f"Penstock runs already (pid {pid}), otherwise than asked:{lines}",
            remedy="`make down` first.",
        )
    if as_json:
        print_json(_facts_json(state))
        return
    out.print(f"Penstock runs already (pid {pid}); `penstock status` tells how it is.")
    out.print(f"  gRPC  {facts.grpc}\n  HTTP  {facts.http}\n  key   in {facts.env_file}")


def _differing(running: processes.Running, wanted: options.UpOptions) -> list[str]:
    found = [
        f"{options.VARIABLES[name]} is {running.options.get(name) or 'unset'}, "
        f"asked for: {value or 'unset'}"
        for name, value in wanted.told.items()
        if running.options.get(name, "") != value
    ]
    with suppress(ConfigError):
        given = preflight.key_variables(load(wanted.config), os.environ)
        found += [
            f"{name} is unset, asked for: set"
            for name in given
            if wanted.paid != options.STAND_IN and name not in running.paid_variables
        ]
    return found


def _facts_json(state: State) -> dict[str, str]:
    return {**read_env(state.env), "PENSTOCK_STATE": str(state.root)}


def _detached(state: State, wanted: options.UpOptions, *, as_json: bool) -> None:
    """The same `up` in a session of its own; returns when it says that it is ready. Who ends this
    before that takes the start back.
    """
    state.make()
    ours, theirs = os.pipe()
    log = state.log("up")
    put_aside(log)
    with log.open("ab") as output:
        start = output.tell()
        command = [sys.executable, "-m", "penstock.cli", "--state", str(state.root), "up"]
        for name, value in wanted.told.items():
            if value:
                command += [f"--{name.replace('_', '-')}", value]
        child = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(theirs,),
            env={**os.environ, READY_FD: str(theirs)},
        )
    os.close(theirs)
    err.print(f"Starting Penstock; its log: {log}", style="dim")
    try:
        with os.fdopen(ours, "rb") as pipe:
            ready = pipe.read()
    except KeyboardInterrupt:
        err.print("Interrupted: what was begun is stopped …")
        child.wait()
        raise
    if not ready:
        child.wait()
        if lock.holder(state) is not None:
            raise lock.Busy
        words = "\n".join([describe_exit(child.returncode), *tail(log, start, lines=40)])
        raise CliError(f"Penstock did not start: it {words}", remedy=f"Its log: {log}")
    if as_json:
        print_json(_facts_json(state))
        return
    catalogue = load(state.config_in_use)
    paid_variables = preflight.key_variables(catalogue, os.environ)
    paid = preflight.paid_sentence(wanted, catalogue, paid_variables)
    welcome.show(out, facts_of(state, paid=paid))


@app.command(epilog=examples("penstock down"))
@clear_faults
def down(context: typer.Context, as_json: Json = False) -> None:
    """Stop it, and whatever a killed one left behind."""
    stopped = end(err if as_json else out, state_of(context))
    if as_json:
        print_json({"stopped": stopped})
    elif not stopped:
        out.print("Nothing of Penstock runs here.")
