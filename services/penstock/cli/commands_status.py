"""`penstock status`: is each part healthy, what can answer, is the paid side on."""

import asyncio
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from penstock.cli import processes
from penstock.cli.app import Json, app, awaited, clear_faults, out, print_json, state_of
from penstock.cli.errors import CliError
from penstock.cli.options import STAND_IN
from penstock.cli.ports import HOST
from penstock.cli.readiness import SERVING, answers, is_serving
from penstock.cli.state import State, read_env, read_json
from penstock.cli.topology import stand_in_health
from penstock.client import Client, PenstockError
from penstock.core.config import ConfigError, load

LOOK_SECONDS = 2.0
"""A healthy part answers in milliseconds."""

GRPC_PARTS = frozenset({"quota", "cache", "capacity", "traces"})
"""With gRPC health, on the port of the same name."""


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    healthy: bool
    detail: str
    pid: int | None
    uptime_seconds: int | None


@app.command()
@clear_faults
@awaited
async def status(context: typer.Context, as_json: Json = False) -> None:
    """How each part is. The exit status is 0 only while all are healthy."""
    state = state_of(context)
    running = processes.load(state)
    supervisor = running.supervisor.process() if running else None
    if running is None or supervisor is None:
        if as_json:
            print_json({"running": False})
            raise typer.Exit(1)
        raise CliError(f"Penstock does not run on {state.root}", remedy="`make up` starts it.")
    parts = await _parts(state, running)
    config = Path(running.options["config"])
    faults = _faults(config)
    # What the router heard of replicas before the local part went away is no longer so.
    is_local_up = all(part.healthy for part in parts if part.name == "local")
    replicas = await _replicas(state) if is_local_up else {}
    healthy = all(part.healthy for part in parts)
    if as_json:
        print_json(
            {
                "running": True,
                "healthy": healthy,
                "version": version("penstock"),
                "pid": supervisor.pid,
                "options": running.options,
                "parts": [asdict(part) for part in parts],
                "replicas": replicas,
                "paid": running.paid,
                "config": str(config),
                "config_faults": faults,
            }
        )
    else:
        _show(state, running, parts, replicas, faults)
    if not healthy:
        raise typer.Exit(1)


async def _parts(state: State, running: processes.Running) -> list[Part]:
    wanted = [record for record in running.children if record.name != "migrate"]
    return list(await asyncio.gather(*(_part(state, running, record) for record in wanted)))


async def _part(state: State, running: processes.Running, record: processes.Record) -> Part:
    if record.process() is None:
        return Part(record.name, healthy=False, detail="not running", pid=None, uptime_seconds=None)
    ports: dict[str, Any] = read_json(state.ports)
    address = ""
    if record.name == "router":
        address = f"{HOST}:{running.options['grpc_port']}"
    elif record.name in GRPC_PARTS:
        address = f"{HOST}:{ports.get(record.name)}"
    if address:
        detail = await is_serving(address, timeout_seconds=LOOK_SECONDS)
        healthy = detail == SERVING
    elif record.name == STAND_IN:
        url = stand_in_health(f"{HOST}:{ports.get('stand_in')}")
        detail = await answers(url, timeout_seconds=LOOK_SECONDS)
        healthy = detail == SERVING
    else:
        healthy = state.ready_file(record.name).exists()
        detail = "ready" if healthy else "starting"
    uptime = int(time.time() - record.started_at)
    return Part(record.name, healthy, detail, record.pid, uptime)


def _faults(config: Path) -> list[str]:
    try:
        load(config)
    except ConfigError as error:
        return error.faults
    return []


async def _replicas(state: State) -> dict[str, int]:
    """Ready replicas by local model, as the router sees them."""
    env = read_env(state.env)
    address, key = env.get("PENSTOCK_GRPC"), env.get("PENSTOCK_API_KEY")
    if not address or not key:
        return {}
    try:
        async with Client(address, key, timeout_seconds=LOOK_SECONDS) as client:
            models = await client.models()
    except PenstockError:
        return {}
    return {m.id: m.ready_replicas for m in models if m.HasField("ready_replicas")}


def _show(
    state: State,
    running: processes.Running,
    parts: list[Part],
    replicas: dict[str, int],
    faults: list[str],
) -> None:
    out.print(f"Penstock {version('penstock')}, pid {running.supervisor.pid}, state {state.root}")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("part", "health", "pid", "up"):
        table.add_column(column)
    for part in parts:
        health = Text(part.detail, style="green" if part.healthy else "bold red")
        up = "" if part.uptime_seconds is None else f"{part.uptime_seconds} s"
        table.add_row(part.name, health, str(part.pid or ""), up)
    out.print(table)
    for model, count in replicas.items():
        noun = "replica" if count == 1 else "replicas"
        out.print(f"  {model}: {count} ready {noun} ({running.options.get('engine')})")
    if not replicas:
        out.print("  local models: none ready")
    out.print(f"  paid side: {running.paid}")
    grpc, http = running.options["grpc_port"], running.options["http_port"]
    out.print(f"  gRPC {HOST}:{grpc}   HTTP http://{HOST}:{http}/v1")
    if faults:
        out.print("[bold red]the configuration is faulty; the last good one is in use:[/]")
        for fault in faults:
            out.print(Text(f"  {fault}"))
