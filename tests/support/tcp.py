"""A port for a server of a test."""

from penstock.core.ports import free_ports


def free_port() -> int:
    """See `free_ports`."""
    return free_ports(1)[0]
