"""`python -m penstock.local`: a private Ray head with the catalogue's models, until SIGTERM."""

import logging
import os
import sys

from penstock.core import log, server
from penstock.local import config, runner

logger = logging.getLogger("penstock.local")


def main() -> None:
    log.setup("local")
    try:
        settings = config.read(os.environ)
        logger.info("configuration: %r", settings)
        server.run(lambda stop: runner.run(settings, stop))
    except runner.STARTUP_FAULTS as error:
        sys.exit(f"local: {error}")


if __name__ == "__main__":
    main()
