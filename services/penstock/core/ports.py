"""TCP ports of this machine: a free one, or why one is not."""

import random
import socket
from contextlib import ExitStack

_CANDIDATES = range(10_000, 20_000)
"""Below those that Linux gives to connections that go out (one of those would take it meanwhile),
and below the blocks that Ray heads claim.
"""
_TRIES_MAX = 200


def why_taken(host: str, port: int) -> str | None:
    """Why nobody can listen there now, in the system's words; None: somebody can."""
    with socket.socket() as probe:
        # Also where the last listener's connections are not quite forgotten: servers do so too.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def free_ports(count: int) -> list[int]:
    """Different ones that nobody listens on now; another process may take one before it is used."""
    with ExitStack() as held:
        # All are held until all are known, so that none is offered twice.
        return [_hold_one(held) for _ in range(count)]


def _hold_one(held: ExitStack) -> int:
    for port in random.sample(_CANDIDATES, _TRIES_MAX):
        probe = held.enter_context(socket.socket())
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise OSError(f"no free port among {_TRIES_MAX} tried from {_CANDIDATES[0]} on")
