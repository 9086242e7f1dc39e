"""`penstock`, also `python -m penstock.cli`."""

import os

BYPASS = "127.0.0.1,localhost"


def register() -> None:
    """Imports the modules whose commands make up the application."""
    from penstock.cli import (  # noqa: F401
        commands_clean,
        commands_config,
        commands_ledger,
        commands_machine,
        commands_requests,
        commands_status,
        commands_trace,
    )


def main() -> None:
    # Our own services are on this machine or named by address: a proxy of the environment must not
    # see their tokens. gRPC reads the variables when it is imported, so this comes first.
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), BYPASS]))
    register()
    from penstock.cli.app import app

    app()


if __name__ == "__main__":
    main()
