"""One JSON line an event, on stderr. Never a secret, never a prompt."""

import logging
import os
import sys
import time

import msgspec

_encode = msgspec.json.Encoder().encode

CHATTY = ("httpx", "httpx2", "watchfiles")
"""They tell every request and every touched file; a log in a watched folder would feed itself."""


class JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line).decode()


def setup(service: str) -> None:
    """Called once by a service's `__main__`; PENSTOCK_LOG_LEVEL sets the level (default INFO)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(
        level=os.environ.get("PENSTOCK_LOG_LEVEL", "INFO").upper(), handlers=[handler], force=True
    )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
