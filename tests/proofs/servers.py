"""Private PostgreSQL servers of the proofs."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from penstock.core.postgres_server import PrivateServer
from support.postgres import server_in


@contextlib.contextmanager
def private_server(*, durable: bool = False) -> Iterator[PrivateServer]:
    """`durable`: with fsync, for proofs that kill it; the others ask for decisions alone."""
    settings = {} if durable else {"fsync": "off", "synchronous_commit": "off"}
    with server_in(Path(tempfile.mkdtemp(prefix="penstock-proof-")), **settings) as server:
        yield server
