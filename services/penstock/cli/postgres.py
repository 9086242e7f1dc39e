"""`python -m penstock.cli.postgres`: PostgreSQL and its two databases, until SIGTERM.

A process of its own, so that PostgreSQL ends in order also when the supervisor is killed.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

from penstock.core.postgres import ensure_database
from penstock.core.postgres_server import PostgresServerError, PrivateServer

EXTENSIONS = {"PENSTOCK_CACHE_DSN": ("vector",), "PENSTOCK_QUOTA_DSN": ()}
"""By the variable that holds the DSN of a database to be made."""

LOOK_SECONDS = 0.5
"""Between two looks whether PostgreSQL still runs."""


def _databases(server: PrivateServer) -> None:
    for variable, extensions in EXTENSIONS.items():
        wanted = urlsplit(os.environ[variable])
        assert wanted.username is not None
        assert wanted.password is not None
        asyncio.run(
            ensure_database(
                server.dsn(),
                database=wanted.path.removeprefix("/"),
                role=wanted.username,
                password=wanted.password,
                extensions=extensions,
            )
        )


def main() -> int:
    stops = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    # Blocked and waited for below: no signal is lost, none interrupts initdb half-way.
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    ready = Path(os.environ["PENSTOCK_READY_FILE"])
    server = PrivateServer(
        Path(os.environ["PENSTOCK_POSTGRES_FOLDER"]), int(os.environ["PENSTOCK_POSTGRES_PORT"])
    )
    try:
        server.start()
        _databases(server)
        ready.write_text("ready\n")
        while server.is_running():
            if signal.sigtimedwait(stops, LOOK_SECONDS) is not None:
                return 0
    except (PostgresServerError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        ready.unlink(missing_ok=True)
        server.stop()
    sys.stderr.write(f"PostgreSQL ended by itself; see {server.log_path}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
