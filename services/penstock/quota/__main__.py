"""`python -m penstock.quota`: serves; `… migrate`: migrates the schema; `… audit`, `seal`,
`detach`, `prune`: see penstock.quota.audit.
"""

import asyncio
import gc
import logging
import os
import sys

from penstock.core import log, postgres, server, telemetry
from penstock.core.config import ConfigError
from penstock.quota.audit import command
from penstock.quota.config import QuotaConfig, read_config, read_dsn
from penstock.quota.store.database import MIGRATIONS
from penstock.quota.wiring import Quota

logger = logging.getLogger("penstock.quota")


GC_THRESHOLDS = (100_000, 20, 50)
"""Python's default looks through all young objects at each 700th new one, while thousands of
operations wait: a quarter of this process's CPU time. Hardly any of them ever lies in a cycle.
"""


async def _serve(config: QuotaConfig, stop: asyncio.Event) -> None:
    process_telemetry = telemetry.setup("quota")
    quota = Quota(config, process_telemetry)
    await quota.start()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        await stop.wait()
    finally:
        await quota.stop()
        await process_telemetry.aclose()


def main(arguments: list[str]) -> int:
    log.setup("quota")
    try:
        if arguments == ["migrate"]:
            # Migrations only add to what the release before uses, so that one serves on after a
            # roll-back, and its deployment must not fail here.
            migrating = postgres.migrate(read_dsn(os.environ), MIGRATIONS, newer_ok=True)
            ran = asyncio.run(migrating)
            logger.info("migrations that ran: %s", ", ".join(ran) or "none, all had run before")
            return 0
        if arguments and arguments[0] in command.COMMANDS:
            return command.run(arguments, read_dsn(os.environ))
        if arguments:
            names = " | ".join(["migrate", *command.COMMANDS])
            print(f"usage: python -m penstock.quota [{names}]", file=sys.stderr)  # noqa: T201 - for who typed it
            return 2
        config = read_config(os.environ)
        logger.info("configuration: %r", config)
        server.run(lambda stop: _serve(config, stop))
    except (ConfigError, postgres.MigrationError, server.PortInUse, OSError) as error:
        logger.error("%s", error)  # noqa: TRY400 - told in one line; the place in our code is no help
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
