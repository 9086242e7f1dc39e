"""Spans of time as people write them: `90min`, `24h`, `7d`, `3mo`."""

import calendar
import re
from datetime import MAXYEAR, datetime, timedelta

from penstock.cli.errors import BAD_USAGE, CliError

_SECONDS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_MONTHS = {"mo": 1, "y": 12}

_PERIOD = re.compile(r"([0-9]{1,9})(s|min|h|d|w|mo|y)")
"""Nine digits: more than any span that means something, and no number that overflows."""


def seconds(text: str, name: str) -> int:
    """Of a span that is the same everywhere: months and years are not. `0` needs no unit.

    Raises:
        CliError: it is none.
    """
    match = _PERIOD.fullmatch(text)
    if text == "0":
        return 0
    if not match or match[2] not in _SECONDS:
        raise CliError(
            f"{name} {text!r} is no span of time; write e.g. 90min, 24h or 7d, or 0",
            code=BAD_USAGE,
        )
    return int(match[1]) * _SECONDS[match[2]]


def after(start: datetime, text: str, name: str) -> datetime:
    """The end of the span that begins at `start`; a month later is the same day, or the last one.

    Raises:
        CliError: it is no span, is empty, or ends beyond the calendar.
    """
    match = _PERIOD.fullmatch(text)
    if not match or not int(match[1]):
        raise CliError(
            f"{name} {text!r} is no span of time; write e.g. 24h, 30d, 3mo or 1y", code=BAD_USAGE
        )
    count, unit = int(match[1]), match[2]
    try:
        if unit in _SECONDS:
            return start + timedelta(seconds=count * _SECONDS[unit])
        return _months_later(start, count * _MONTHS[unit])
    except (ValueError, OverflowError):
        raise CliError(f"{name} {text!r} ends beyond the year 9999", code=BAD_USAGE) from None


def _months_later(start: datetime, months: int) -> datetime:
    years, month = divmod(start.month - 1 + months, 12)
    year = start.year + years
    if year > MAXYEAR:
        raise OverflowError
    day = min(start.day, calendar.monthrange(year, month + 1)[1])
    return start.replace(year=year, month=month + 1, day=day)
