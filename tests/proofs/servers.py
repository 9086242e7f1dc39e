"""Private PostgreSQL servers of the proofs."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from penstock.core.ports import free_port
from penstock.core.postgres_server import PrivateServer, remove


@contextlib.contextmanager
def private_server(*, durable: bool = False) -> Iterator[PrivateServer]:
    """`durable`: with fsync, for proofs that kill it; the others ask for decisions alone."""
    settings = {} if durable else {"fsync": "off", "synchronous_commit": "off"}
    folder = Path(tempfile.mkdtemp(prefix="penstock-proof-"))
    server = PrivateServer(folder, free_port(), settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        remove(folder)
