"""`python -m penstock.cache`"""

import asyncio
import logging
import os
import sys

from penstock.cache.config import Config
from penstock.cache.wiring import wire
from penstock.core import log
from penstock.core.config import ConfigError
from penstock.core.postgres import MigrationError
from penstock.core.server import PortInUse, run
from penstock.core.telemetry import setup

logger = logging.getLogger(__name__)


async def main(stop: asyncio.Event) -> None:
    config = Config.read(os.environ)
    logger.info("starting with %s", config)
    telemetry = setup("cache")
    try:
        cache = await wire(config, telemetry)
        await cache.serve(stop)
    finally:
        await telemetry.aclose()


if __name__ == "__main__":
    log.setup("cache")
    try:
        run(main)
    except (ConfigError, MigrationError, PortInUse) as error:
        sys.exit(f"cache: {error}")
