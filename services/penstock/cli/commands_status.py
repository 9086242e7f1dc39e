"""`penstock status`: is each part healthy, what can answer, is the paid side on."""

import asyncio
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import grpc
import typer
from rich import box
from rich.table import Table
from rich.text import Text

from penstock.capacity.v1.capacity_pb2 import Replica, WatchSnapshotsRequest
from penstock.capacity.v1.capacity_pb2_grpc import CapacityServiceStub
from penstock.cli import config_in_use, processes
from penstock.cli.app import Json, app, awaited, clear_faults, examples, out, print_json, state_of
from penstock.cli.errors import CliError
from penstock.cli.options import STAND_IN
from penstock.cli.ports import HOST
from penstock.cli.readiness import SERVING, answers, is_serving
from penstock.cli.state import State, read_json
from penstock.cli.topology import stand_in_health
from penstock.core.catalogue import LOCAL_PROVIDER
from penstock.core.channel import bearer, connect
from penstock.core.postgres_server import kept_elsewhere
from penstock.traces import trouble

LOOK_SECONDS = 2.0
"""A healthy part answers in milliseconds."""

DISK_FREE_BYTES_MIN = 32 * 1024 * 1024
"""Two segments of PostgreSQL's log: with less the database may not be able to write at all."""

GRPC_PARTS = frozenset({"quota", "cache", "capacity", "traces"})
"""With gRPC health, on the port of the same name."""


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    healthy: bool
    detail: str
    pid: int | None
    uptime_seconds: int | None


@dataclass(frozen=True, slots=True)
class Replicas:
    """Of one local model. `status`: for people, why some are not ready."""

    ready: int
    target: int
    status: str


@app.command(epilog=examples("penstock status", "penstock status --json"))
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
    faults = config_in_use.why_not_in_use(state, running)
    # What was heard of replicas before the local part went away is no longer so.
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
                "replicas": {model: asdict(found) for model, found in replicas.items()},
                "paid": running.paid,
                "collector_fault": trouble(state.traces),
                "config": running.options["config"],
                "config_in_use": str(state.config_in_use),
                "config_faults": faults,
            }
        )
    else:
        _show(state, running, parts, replicas, faults)
    if not healthy:
        raise typer.Exit(1)


async def _parts(state: State, running: processes.Running) -> list[Part]:
    wanted = [record for record in running.children if record.name != "migrate"]
    parts = await asyncio.gather(*(_part(state, running, record) for record in wanted))
    return [*parts, _disk(state)]


def _disk(state: State) -> Part:
    """The fullest of those that the state lies on: PostgreSQL's folder may be elsewhere."""
    places = [place for place in (state.root, kept_elsewhere(state.postgres)) if place]
    free, place = min((shutil.disk_usage(place).free, place) for place in places)
    healthy, detail = free >= DISK_FREE_BYTES_MIN, f"{free // 2**20} MiB free"
    if not healthy:
        detail = f"full: {detail} at {place}; free some space"
    return Part("disk", healthy, detail, pid=None, uptime_seconds=None)


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


async def _replicas(state: State) -> dict[str, Replicas]:
    """By local model, as capacity sees them; empty: it does not answer."""
    address = f"{HOST}:{read_json(state.ports).get('capacity')}"
    token = str(read_json(state.secrets).get("service_token"))
    try:
        async with connect(address) as channel:
            call = CapacityServiceStub(channel).WatchSnapshots(
                WatchSnapshotsRequest(), metadata=(bearer(token),), timeout=LOOK_SECONDS
            )
            first = await anext(aiter(call), None)
    except grpc.aio.AioRpcError:
        return {}
    if first is None:  # it is about to end
        return {}
    return {
        f"{LOCAL_PROVIDER}/{pool.model}": Replicas(
            ready=sum(replica.state == Replica.STATE_READY for replica in pool.replicas),
            target=pool.target_replicas,
            status=pool.status,
        )
        for pool in first.snapshot.pools
    }


def _show(
    state: State,
    running: processes.Running,
    parts: list[Part],
    replicas: dict[str, Replicas],
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
    for model, found in replicas.items():
        engine = running.options.get("engine")
        out.print(f"  {model}: {found.ready} of {found.target} replicas ready ({engine})")
        if found.ready < found.target and found.status:
            out.print(Text(f"    {found.status}", style="yellow"))
    if not replicas:
        out.print("  local models: none ready")
    out.print(f"  paid side: {running.paid}")
    if told := trouble(state.traces):
        out.print(Text(f"  {told}", style="yellow"))
    grpc, http = running.options["grpc_port"], running.options["http_port"]
    out.print(f"  gRPC {HOST}:{grpc}   HTTP http://{HOST}:{http}/v1")
    out.print(Text(f"  configuration: {running.options['config']}"))
    if faults:
        out.print("[bold red]the configuration on disk is not in use:[/]")
        for fault in faults:
            out.print(Text(f"  {fault}"))
        out.print(Text(f"  The last good one is: {state.config_in_use}"))
