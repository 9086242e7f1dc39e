"""Ports of one machine's Penstock, all on 127.0.0.1.

Two are public and fixed, so that clients find them; the rest are picked free once
and remembered, and picked anew when somebody else took one meanwhile.
"""

import errno
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.state import State, read_json, write_json
from penstock.core.ports import why_taken

HOST = "127.0.0.1"
GRPC_DEFAULT = 7070
HTTP_DEFAULT = 7080
PORT_MAX = 65_535

INTERNAL = (
    "postgres",
    "quota",
    "quota_admin",
    "cache",
    "capacity",
    "traces",
    "ray_api",
    "ray_gcs",
    "stand_in",
)

RANGE = range(32_000, 32_768)
"""Below the kernel's ephemeral ports, so that no outgoing connection takes a remembered one; above
the blocks of Ray's replicas (`penstock.local.ports`), which are claimed before these are bound."""

TRIES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Public:
    """A fixed port and how to change it."""

    port: int
    variable: str
    flag: str


def is_free(port: int) -> bool:
    return why_taken(HOST, port) is None


def holder(port: int) -> str:
    """Who listens there, as far as this user may know."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return "another program"
    for connection in connections:
        listening = connection.status == psutil.CONN_LISTEN
        if listening and connection.laddr and connection.laddr.port == port and connection.pid:
            try:
                name = psutil.Process(connection.pid).name()
            except psutil.Error:
                break
            return f"{name} (pid {connection.pid})"
    return "another program"


def demand_free(public: Public) -> None:
    """Raises CliError: the port is taken or forbidden, or no port at all."""
    if not 1 <= public.port <= PORT_MAX:
        raise CliError(
            f"{public.port} is no port (1 to {PORT_MAX})",
            remedy=f"Set {public.variable} or {public.flag} to another one.",
            code=BAD_USAGE,
        )
    why = why_taken(HOST, public.port)
    if why is None:
        return
    if why == os.strerror(errno.EADDRINUSE):
        why = f"in use by {holder(public.port)}"
    raise CliError(
        f"port {public.port} on {HOST} cannot be had: {why}",
        remedy=f"Choose another one ({public.variable}=… or {public.flag} …), or mend that.",
    )


def internal_ports(state: State, reserved: tuple[int, ...] = ()) -> Mapping[str, int]:
    """Port by name: the remembered ones that are still free, others picked anew and remembered."""
    kept = read_json(state.ports)
    remembered = {port for port in kept.values() if isinstance(port, int)}
    taken = set(reserved)
    found: dict[str, int] = {}
    for name in INTERNAL:
        port = kept.get(name)
        if not isinstance(port, int) or port in taken or not is_free(port):
            port = _pick(taken | remembered)
        found[name] = port
        taken.add(port)
    if found != kept:
        write_json(state.ports, found)
    return found


def _pick(taken: set[int]) -> int:
    for _ in range(TRIES_MAX):
        port = random.choice(RANGE)  # noqa: S311 - no secret: it only has to be free
        if port not in taken and is_free(port):
            return port
    raise CliError(f"no free port found between {RANGE.start} and {RANGE.stop}")
