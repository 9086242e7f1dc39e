"""TCP ports of this machine: a free one, or why one is not."""

import socket


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


def free_port() -> int:
    """One that nobody listens on now; another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
