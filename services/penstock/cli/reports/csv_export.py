"""CSV exports: of the provider's dashboard, or made by hand. The header says what a file holds.

Columns (any order, case ignored; others are left alone; `,`, `;` or tab between them):

  start_time, end_time     Unix seconds; or start_time_iso, end_time_iso; or `date`, a UTC day
  model                    of usage, and of costs that have no line_item
  input_tokens             or prompt_tokens
  input_cached_tokens      or cached_prompt_tokens; a part of the input
  output_tokens            or completion_tokens
  num_model_requests       or requests
  amount_value             or amount_usd, amount, cost_usd: decimal USD
  amount_currency          or currency; absent: USD
  line_item                "gpt-4o-mini-2024-07-18, input"
  project_id, api_key_id   or project, key

A line with a time and nothing else is a bucket in which nothing was used.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from itertools import takewhile

from penstock.cli.reports import numbers
from penstock.cli.reports.faults import Collector
from penstock.cli.reports.rows import (
    DAY_SECONDS,
    NO_NAME,
    SECONDS_MAX,
    Bucket,
    Kind,
    Line,
    Report,
    day_of,
    is_name,
    is_width,
    model_of_line_item,
    seconds_of,
)

NAMES = {
    "start_time": "start_time",
    "end_time": "end_time",
    "start_time_iso": "start_time_iso",
    "end_time_iso": "end_time_iso",
    "date": "date",
    "day": "date",
    "model": "model",
    "input_tokens": "input_tokens",
    "prompt_tokens": "input_tokens",
    "input_cached_tokens": "input_cached_tokens",
    "cached_prompt_tokens": "input_cached_tokens",
    "output_tokens": "output_tokens",
    "completion_tokens": "output_tokens",
    "num_model_requests": "num_model_requests",
    "requests": "num_model_requests",
    "amount_value": "amount_value",
    "amount_usd": "amount_value",
    "amount": "amount_value",
    "cost_usd": "amount_value",
    "amount_currency": "amount_currency",
    "currency": "amount_currency",
    "line_item": "line_item",
    "project_id": "project_id",
    "project": "project_id",
    "api_key_id": "api_key_id",
    "key": "api_key_id",
}
"""How each column that is read may be called."""

TIMES = ({"start_time", "end_time"}, {"start_time_iso", "end_time_iso"}, {"date"})
CURRENCY = "usd"
_FACTS = ("model", "line_item", "amount_value", "input_tokens", "num_model_requests")


def parse(file: str, text: str) -> Report:
    """One file.

    Raises:
        FaultyReport: with every fault of the file.
    """
    faults = Collector(file)
    report = Report(file)
    header, _, _ = text.partition("\n")
    delimiter = max(",;\t", key=header.count)
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff")), delimiter=delimiter, strict=True)
    try:
        columns = _columns(faults, next(lines, []))
        faults.check()
        last = 0
        for cells in lines:
            if cells:
                last = _row(faults, report, lines.line_num, columns, cells, last)
    except csv.Error as error:
        faults.add(f"line {lines.line_num}", "", f"is no CSV ({error})", "Export it again")
    if not report.buckets and not faults.found:
        faults.add("line 2", "", "the file has a header and no line", "Export days that are over")
    faults.check()
    return report


def _columns(faults: Collector, header: list[str]) -> list[str]:
    """Of each column the name it has here; "" for those that are not read."""
    columns = [NAMES.get(name.strip().lower(), "") for name in header]
    listed = "Known columns: " + ", ".join(sorted(NAMES))
    if not any(columns):
        faults.add("line 1", "", "names no known column", listed)
        return columns
    for name in sorted({c for c in columns if c and columns.count(c) > 1}):
        faults.add("line 1", name, "stands for two columns", "Leave one of them out")
    if not any(times <= set(columns) for times in TIMES):
        faults.add("line 1", "start_time", "is missing, and so is date", listed)
    # The dashboard writes an export in which nothing was used without any other column.
    told = set(columns) & set(_FACTS)
    if told and not told & {"model", "line_item"}:
        faults.add("line 1", "model", "is missing, and so is line_item", listed)
    if told and not told & {"amount_value", "input_tokens"}:
        faults.add("line 1", "amount_value", "is missing, and so is input_tokens", listed)
    if "input_tokens" in told and "output_tokens" not in columns:
        faults.add("line 1", "output_tokens", "is missing beside input_tokens", listed)
    return columns


def _row(
    faults: Collector, report: Report, number: int, columns: list[str], cells: list[str], last: int
) -> int:
    """Reads one line; the start of its bucket, or of the last good one."""
    place = f"line {number}"
    if len(cells) != len(columns):
        problem = f"has {len(cells)} cells under {len(columns)} columns"
        faults.add(place, "", problem, "Export it again, or mend the line")
        return last
    row = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if name}
    span = _span(faults, place, row)
    if span is None:
        return last
    start, end = span
    if start < last:
        problem = (
            "lies before the line above it: the file holds an export twice, or is out of order"
        )
        faults.add(place, "start_time", problem, "Leave the second copy out, or sort by time")
    if not any(row.get(name) for name in _FACTS):
        kind: Kind = "empty"
    else:
        kind = "costs" if row.get("amount_value") else "usage"
        report.lines.append(_line(faults, place, row, day_of(start)))
    bucket = Bucket(kind, start, end, place)
    if not any(_same(bucket, known) for known in _of_start(report.buckets, start)):
        report.buckets.append(bucket)
    return max(start, last)


def _of_start(buckets: list[Bucket], start: int) -> Iterator[Bucket]:
    """The last ones, which began then: lines come in order."""
    return takewhile(lambda bucket: bucket.start == start, reversed(buckets))


def _same(one: Bucket, other: Bucket) -> bool:
    return (one.kind, one.start, one.end) == (other.kind, other.start, other.end)


def _span(faults: Collector, place: str, row: Mapping[str, str]) -> tuple[int, int] | None:
    if row.get("start_time") or row.get("end_time"):
        start = numbers.count(faults, place, "start_time", row.get("start_time"))
        end = numbers.count(faults, place, "end_time", row.get("end_time"))
        if not 0 < start < SECONDS_MAX or not is_width(faults, place, start, end):
            return None
        return start, end
    if row.get("date"):
        day = _day(row["date"])
        if day is None:
            problem = f"is {row['date'][:40]!r}, no UTC day"
            faults.add(place, "date", problem, "Write it as 2026-11-01")
            return None
        return seconds_of(day), seconds_of(day) + DAY_SECONDS
    ends = [_instant(row.get(name, "")) for name in ("start_time_iso", "end_time_iso")]
    start_iso, end_iso = ends
    if start_iso is None or end_iso is None:
        remedy = "Write it as 2026-11-01T00:00:00+00:00"
        faults.add(place, "start_time_iso", "is no time, nor is there another column of it", remedy)
        return None
    return (start_iso, end_iso) if is_width(faults, place, start_iso, end_iso) else None


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _instant(text: str) -> int | None:
    """Unix seconds; UTC where no zone is named."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        return None
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return int(aware.timestamp()) if aware.microsecond == 0 else None


def _line(faults: Collector, place: str, row: Mapping[str, str], day: date) -> Line:
    item, model = row.get("line_item", ""), row.get("model", "")
    name = model_of_line_item(item) if item else model
    if not name:
        remedy = "Export it again, grouped by model (usage) or by line item (costs)"
        faults.add(place, "model", "is missing: the line belongs to no model", remedy)
    for field in ("model", "line_item", "project_id", "api_key_id"):
        if not is_name(row.get(field, "")):
            faults.add(place, field, NO_NAME, "Export it again")
    amount = None
    if row.get("amount_value"):
        amount = numbers.amount_usd(faults, place, "amount_value", row["amount_value"])
        currency = row.get("amount_currency") or CURRENCY
        if currency.lower() != CURRENCY:
            problem = f"is {currency!r}; the ledger counts in USD alone"
            faults.add(place, "amount_currency", problem, "Export an organisation billed in USD")
    needed = amount is None
    counts = {
        field: numbers.count(faults, place, field, row.get(field))
        for field, must in (
            ("num_model_requests", False),
            ("input_tokens", needed),
            ("input_cached_tokens", False),
            ("output_tokens", needed),
        )
        if must or row.get(field)
    }
    prompt, cached = counts.get("input_tokens", 0), counts.get("input_cached_tokens", 0)
    if cached > prompt:
        problem = f"is {cached}, more than all input tokens ({prompt})"
        faults.add(place, "input_cached_tokens", problem, "Export it again")
    return Line(
        day=day,
        model=name,
        project=row.get("project_id", ""),
        key=row.get("api_key_id", ""),
        requests=counts.get("num_model_requests", 0),
        prompt_tokens=prompt,
        cached_prompt_tokens=cached,
        completion_tokens=counts.get("output_tokens", 0),
        amount_usd=amount,
    )
