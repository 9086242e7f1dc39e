"""One JSON line an event, on stderr. Never a secret, never a prompt."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

_encode = msgspec.json.Encoder().encode

CHATTY = ("httpx", "httpx2", "watchfiles")
"""They tell every request and every touched file; a log in a watched folder would feed itself."""

LEVEL = "PENSTOCK_LOG_LEVEL"
LEVEL_DEFAULT = "INFO"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

FILE_BYTES_MAX = 16 * 1024 * 1024
"""No process logs a line a request: at each start is often enough to look."""


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


def level_fault(environ: Mapping[str, str]) -> str:
    """What is wrong with PENSTOCK_LOG_LEVEL; empty: nothing."""
    level = environ.get(LEVEL) or LEVEL_DEFAULT
    if level.upper() in LEVELS:
        return ""
    return f"{LEVEL}: {level!r} is not known; write one of {', '.join(LEVELS)}"


def setup(service: str) -> None:
    """Called once by a service's `__main__`; PENSTOCK_LOG_LEVEL sets the level (default INFO).

    A level that is not known ends the process with a line that says so.
    """
    if fault := level_fault(os.environ):
        sys.exit(f"{service}: {fault}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(
        level=(os.environ.get(LEVEL) or LEVEL_DEFAULT).upper(), handlers=[handler], force=True
    )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def put_aside(file: Path) -> None:
    """A file above FILE_BYTES_MAX becomes `<name>.log.1`; the one before is deleted."""
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_size > FILE_BYTES_MAX:
            file.replace(file.with_suffix(".log.1"))
