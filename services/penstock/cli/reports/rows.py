"""What a provider's exports say, in one shape: lines of buckets of time."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Literal

from penstock.cli.reports.faults import Collector

Kind = Literal["usage", "costs", "empty"]
"""Of what a bucket tells; of an answer without a single result nobody can say which it was."""

DAY_SECONDS = 86_400
WIDTHS = {DAY_SECONDS: "1d", 3_600: "1h", 60: "1m"}
"""Buckets that fit into a UTC day a whole number of times."""
SECONDS_MAX = 253_402_300_800
"""The end of the year 9999."""

NAME_LENGTH_MAX = 256
NO_NAME = f"is no name of at most {NAME_LENGTH_MAX} printable characters"

_TIER = re.compile(r"^[^|,]{1,32}\|\s*")
_MODALITIES = ("audio", "image", "text", "video", "realtime")


@dataclass(frozen=True, slots=True)
class Line:
    """One result of one bucket. `amount_usd` None: the export says nothing of money."""

    day: date
    model: str
    project: str
    key: str
    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    amount_usd: Fraction | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """A span of time of one export, [start, end) in Unix seconds, with its place in the file."""

    kind: Kind
    start: int
    end: int
    place: str

    @property
    def day(self) -> date:
        return day_of(self.start)


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of the API: its buckets, and the cursor of the page that follows it, if any."""

    kind: Kind
    place: str
    start: int
    end: int
    next_page: str | None


@dataclass(slots=True)
class Report:
    """One file, read."""

    file: str
    lines: list[Line] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)


def is_name(text: str) -> bool:
    """Whether it can be a model's, a project's or a key's; "" is none of them."""
    return len(text) <= NAME_LENGTH_MAX and text.isprintable()


def day_of(unix_seconds: int) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=unix_seconds)).date()


def seconds_of(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_SECONDS


def is_width(faults: Collector, place: str, start: int, end: int) -> bool:
    """Whether [start, end) is one of the buckets that are understood, where it should begin."""
    remedy = "Export it again with bucket_width=1d and a start_time at midnight UTC"
    width = end - start
    if width not in WIDTHS:
        told = ", ".join(f"{name} ({seconds} s)" for seconds, name in WIDTHS.items())
        faults.add(place, "end_time", f"makes a bucket of {width} s; known are {told}", remedy)
        return False
    if start % width:
        faults.add(place, "start_time", f"{start} is no start of a {WIDTHS[width]} bucket", remedy)
        return False
    return True


def model_of_line_item(text: str) -> str:
    """The model of a cost's line item: "gpt-4o-mini-2024-07-18, input" has one before its comma.

    What is no model's ("web search tool calls") is billed under its own name.
    """
    item = text.strip()
    if "," not in item:
        return item
    words = _TIER.sub("", item).partition(",")[0].split()
    if len(words) == 2 and words[1].lower() in _MODALITIES:
        return words[0]
    return " ".join(words)


def days(since: date, until: date) -> Sequence[date]:
    return [since + timedelta(days=n) for n in range((until - since).days)]


def extent(found: Iterable[Bucket]) -> tuple[date, date] | None:
    """The first day, and the day after the last."""
    listed = list(found)
    if not listed:
        return None
    first = min(bucket.day for bucket in listed)
    last = max(day_of(bucket.end - 1) for bucket in listed)
    return first, last + timedelta(days=1)
