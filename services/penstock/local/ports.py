"""Ports of this machine: single free ones, and a block that no other head of ours uses."""

import socket
from dataclasses import dataclass

from penstock.core.ports import why_taken

BLOCK_PORTS = 200
"""Of one head: half for the HTTP, half for the gRPC servers of its replicas on this machine."""

FIRST_PORT = 20_000
LAST_PORT = 32_000
"""Below the ephemeral ports that the kernel hands out (from 32768)."""


class NoFreePorts(Exception):
    """Every block is in use."""


def is_free(port: int) -> bool:
    """Whether nobody listens on it, on any address of this machine."""
    # Listening on one address and on all of them are told apart by some servers' options: ask both.
    return not any(why_taken(host, port) for host in ("127.0.0.1", "0.0.0.0"))  # noqa: S104 - asked


@dataclass
class PortBlock:
    """Ports `first` to `first + BLOCK_PORTS - 1`, claimed until `release` or this process's end.

    Ray binds its replicas' gRPC ports in a way that lets a second Ray on this machine bind the same
    ones, and the kernel then deals calls out to either: so two heads must never share a range.
    """

    first: int
    _claim: socket.socket

    @property
    def http(self) -> tuple[int, int]:
        return self.first, self.first + BLOCK_PORTS // 2 - 1

    @property
    def grpc(self) -> tuple[int, int]:
        return self.first + BLOCK_PORTS // 2, self.first + BLOCK_PORTS - 1

    def release(self) -> None:
        self._claim.close()


def claim_block() -> PortBlock:
    """The first block that no other head holds and that nobody listens in.

    Raises:
        NoFreePorts.
    """
    for first in range(FIRST_PORT, LAST_PORT, BLOCK_PORTS):
        # An abstract socket: known to all of this machine's network, gone with its process.
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0penstock-ports-{first}")
        except OSError:
            claim.close()
            continue
        if all(is_free(port) for port in range(first, first + BLOCK_PORTS)):
            return PortBlock(first, claim)
        claim.close()
    raise NoFreePorts(f"no {BLOCK_PORTS} free ports between {FIRST_PORT} and {LAST_PORT}")
