"""`python -m penstock.router`: the data plane, gRPC and HTTP."""

import asyncio
import logging
import os
import sys

from penstock.core import log, server, telemetry
from penstock.core.config import ConfigError
from penstock.router.config import RouterConfig, read_config
from penstock.router.wiring import Router

logger = logging.getLogger("penstock.router")


async def _serve(config: RouterConfig, stop: asyncio.Event) -> None:
    process_telemetry = telemetry.setup("router")
    router = Router(config, process_telemetry)
    await router.start()
    try:
        await stop.wait()
        logger.info("draining")
    finally:
        await router.stop()
        await process_telemetry.aclose()


def main() -> int:
    log.setup("router")
    try:
        config = read_config(os.environ)
        logger.info("configuration: %r", config)
        server.run(lambda stop: _serve(config, stop))
    except (ConfigError, server.PortInUse) as error:
        logger.error("%s", error)  # noqa: TRY400 - the place in our code is no help
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
