"""`python -m penstock.traces`: receives traces by OTLP over gRPC and keeps the last of them."""

import asyncio
import logging
import os
import sys

from penstock.core import log
from penstock.core.config import ConfigError
from penstock.core.server import PortInUse, run
from penstock.traces.config import read_config
from penstock.traces.store import StoreError
from penstock.traces.wiring import serve

logger = logging.getLogger("penstock.traces")


def main() -> int:
    log.setup("traces")
    try:
        config = read_config(os.environ)
        logger.info("configuration: %r", config)

        async def serving(stop: asyncio.Event) -> None:
            await serve(config, stop)

        run(serving)
    except (ConfigError, StoreError, PortInUse) as error:
        sys.stderr.write(f"penstock traces: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
