"""`penstock`, also `python -m penstock.cli`."""

import os

BYPASS = "127.0.0.1,localhost"


def register() -> None:
    """Imports the modules whose commands make up the application."""
    from penstock.cli import (  # noqa: F401
        commands_account,
        commands_adjust,
        commands_alerts,
        commands_audit,
        commands_balance,
        commands_budget,
        commands_clean,
        commands_config,
        commands_entries,
        commands_grant,
        commands_keys,
        commands_limit,
        commands_machine,
        commands_migrate,
        commands_pool,
        commands_reconcile,
        commands_requests,
        commands_status,
        commands_trace,
        commands_usage,
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
