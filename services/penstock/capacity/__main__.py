"""`python -m penstock.capacity`."""

import logging
import os
import sys

from penstock.capacity import config, wiring
from penstock.core import log, server
from penstock.core.config import ConfigError

logger = logging.getLogger("penstock.capacity")


def main() -> None:
    log.setup("capacity")
    try:
        settings = config.read(os.environ)
        logger.info("configuration: %r", settings)
        server.run(lambda stop: wiring.run(settings, stop))
    except (ConfigError, server.PortInUse) as error:
        sys.exit(f"capacity: {error}")


if __name__ == "__main__":
    main()
