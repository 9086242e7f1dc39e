"""Several files as one report: nothing twice, nothing left out, a row a day, model and so on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from itertools import pairwise

from penstock.cli.reports import csv_export, numbers, openai_json
from penstock.cli.reports.faults import Fault, FaultyReport
from penstock.cli.reports.rows import (
    DAY_SECONDS,
    Bucket,
    Kind,
    Page,
    Report,
    days,
    extent,
    seconds_of,
)

Price = Callable[[str, int, int, int], int | None]
"""Nano-USD of (model, prompt, cached prompt, completion tokens); None: the model has no price."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the provider says of one day, model, project and key; what it billed is exact."""

    day: date
    model: str
    project: str
    key: str
    requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    amount_nano_usd: int
    priced: bool
    """By our own price: the export said nothing of money."""


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    amount_usd: Fraction = Fraction(0)


def parse(file: str, text: str) -> Report:
    """JSON or CSV, by how the text begins.

    Raises:
        FaultyReport: with every fault of the file.
    """
    begins = text.lstrip("\ufeff \t\r\n")[:1]
    if begins in {"{", "["} or not begins:
        return openai_json.parse(file, text.removeprefix("\ufeff"))
    return csv_export.parse(file, text)


def span(reports: Sequence[Report]) -> tuple[date, date]:
    """[first day, day after the last) of all the files."""
    found = extent(bucket for report in reports for bucket in report.buckets)
    assert found is not None, "a parsed file has a bucket"
    return found


def rows(reports: Sequence[Report], *, since: date, until: date, price: Price) -> list[Row]:
    """What was used and billed from `since` to before `until`, sorted.

    Where costs of a day are known they are what was billed, and its usage only counts requests and
    tokens; where only usage is known it is priced.

    Raises:
        FaultyReport: buckets twice or overlapping, a page or a day that is missing, a model without
            a price.
    """
    faults = [*_doubled(reports), *_missing_pages(reports), *_missing_days(reports, since, until)]
    if faults:
        raise FaultyReport(faults)
    billed = {b.day for report in reports for b in report.buckets if b.kind == "costs"}
    sums: dict[tuple[date, str, str, str], _Sum] = {}
    for report in reports:
        for line in report.lines:
            if not since <= line.day < until:
                continue
            total = sums.setdefault((line.day, line.model, line.project, line.key), _Sum())
            total.requests += line.requests
            total.prompt_tokens += line.prompt_tokens
            total.cached_prompt_tokens += line.cached_prompt_tokens
            total.completion_tokens += line.completion_tokens
            total.amount_usd += line.amount_usd or 0
    found = []
    for key, total in sorted(sums.items()):
        amount = _amount(key, total, billed, price)
        if amount is None:
            faults.append(_unpriced(reports, key[0], key[1]))
            continue
        found.append(
            Row(
                *key,
                requests=total.requests,
                prompt_tokens=total.prompt_tokens,
                cached_prompt_tokens=total.cached_prompt_tokens,
                completion_tokens=total.completion_tokens,
                amount_nano_usd=amount,
                priced=key[0] not in billed,
            )
        )
    if faults:
        raise FaultyReport(faults)
    return found


def _amount(
    key: tuple[date, str, str, str], total: _Sum, billed: set[date], price: Price
) -> int | None:
    day, model, _, _ = key
    if day in billed:
        return numbers.nano_usd(total.amount_usd)
    return price(model, total.prompt_tokens, total.cached_prompt_tokens, total.completion_tokens)


def _unpriced(reports: Sequence[Report], day: date, model: str) -> Fault:
    for report in reports:
        for n, line in enumerate(report.lines, 1):
            if (line.day, line.model) == (day, model):
                place = f"{day}, result {n}"
                problem = f"{model!r} has no price in the configuration, and no cost is given"
                remedy = "Give the costs export of the same days, too, or add the model's price"
                return Fault(report.file, place, "model", problem, remedy)
    raise AssertionError(model)


def _doubled(reports: Sequence[Report]) -> list[Fault]:
    faults = []
    kinds: tuple[Kind, ...] = ("usage", "costs")
    for kind in kinds:
        placed = sorted(
            ((b, r.file) for r in reports for b in r.buckets if b.kind == kind),
            key=lambda found: (found[0].start, found[0].end),
        )
        for (before, first), (after, second) in pairwise(placed):
            if after.start >= before.end:
                continue
            same = (after.start, after.end) == (before.start, before.end)
            problem = (
                f"the {kind} of {after.day} are {'' if same else 'in part '}in {first}, "
                f"{before.place}, already"
            )
            remedy = "Leave one of them out; export all projects at once"
            faults.append(Fault(second, after.place, "start_time", problem, remedy))
    return faults


def _missing_pages(reports: Sequence[Report]) -> list[Fault]:
    pages: list[tuple[str, Page]] = [(r.file, page) for r in reports for page in r.pages]
    faults = []
    for file, page in pages:
        if page.next_page is None or any(
            other.start == page.end
            and ({other.kind, page.kind} & {"empty"} or other.kind == page.kind)
            for _, other in pages
        ):
            continue
        remedy = f"Fetch it with page={page.next_page} and give it, too"
        problem = "is true, and the page that follows is not among the files"
        faults.append(Fault(file, page.place, "has_more", problem, remedy))
    return faults


def _missing_days(reports: Sequence[Report], since: date, until: date) -> list[Fault]:
    """Each day is covered, by buckets of any kind, from its midnight to the next."""
    covered: dict[date, dict[tuple[int, int], Bucket]] = {}
    for report in reports:
        for bucket in report.buckets:
            covered.setdefault(bucket.day, {})[bucket.start, bucket.end] = bucket
    names = ", ".join(report.file for report in reports)
    remedy = "Export these days in full, too, or narrow --since and --until"
    return [
        Fault(names, f"{day}", "", "the day is not covered in full", remedy)
        for day in days(since, until)
        if _covered_seconds(covered.get(day, {}), seconds_of(day)) < DAY_SECONDS
    ]


def _covered_seconds(spans: dict[tuple[int, int], Bucket], midnight: int) -> int:
    reached = midnight
    for start, end in sorted(spans):
        if start > reached:
            break
        reached = max(reached, end)
    return reached - midnight
