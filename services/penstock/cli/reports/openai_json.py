"""The JSON of OpenAI's organization usage and costs API, as it was answered.

`GET /v1/organization/usage/completions?bucket_width=1d&group_by[]=model&group_by[]=project_id…` and
`GET /v1/organization/costs?group_by[]=line_item&group_by[]=project_id`: pages of buckets.
A file holds one page, or a list of pages. Numbers are read from their text as decimals.
"""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from penstock.cli.reports import numbers
from penstock.cli.reports.faults import Collector
from penstock.cli.reports.rows import (
    NO_NAME,
    SECONDS_MAX,
    Bucket,
    Kind,
    Line,
    Page,
    Report,
    day_of,
    is_name,
    is_width,
    model_of_line_item,
)

USAGE_RESULT = "organization.usage.completions.result"
COSTS_RESULT = "organization.costs.result"
CURRENCY = "usd"

_PAGE_REMEDY = (
    "Give the answer of /v1/organization/usage/completions or /v1/organization/costs as it came"
)


def parse(file: str, text: str) -> Report:
    """One file.

    Raises:
        FaultyReport: with every fault of the file.
    """
    faults = Collector(file)
    report = Report(file)
    document = _decode(faults, text)
    faults.check()
    pages = document if isinstance(document, list) else [document]
    if not pages:
        faults.add("$", "", "is an empty list", _PAGE_REMEDY)
    for n, page in enumerate(pages):
        _page(faults, report, f"$[{n}]" if isinstance(document, list) else "$", page)
    faults.check()
    return report


def _decode(faults: Collector, text: str) -> Any:
    if not text.strip():
        faults.add("line 1", "", "the file is empty", "Export it again")
        return None
    try:
        # Also what JSON does not know (NaN): it is found where it stands, with its path.
        number = numbers.of_json
        return json.loads(text, parse_float=number, parse_int=number, parse_constant=number)
    except json.JSONDecodeError as error:
        remedy = "Save the API's answer as it came, each page in a file of its own"
        faults.add(f"line {error.lineno}", "", f"is no JSON ({error.msg})", remedy)
    except RecursionError:
        faults.add("$", "", "is nested deeper than any answer of the API", _PAGE_REMEDY)
    return None


def _page(faults: Collector, report: Report, place: str, page: Any) -> None:
    if not isinstance(page, Mapping) or page.get("object") != "page":
        faults.add(place, "object", "is no page", _PAGE_REMEDY)
        return
    data = page.get("data")
    if not isinstance(data, list) or not data:
        remedy = "Export days that have a bucket; an empty page says nothing"
        faults.add(place, "data", "has no bucket", remedy)
        return
    kind = _kind(faults, place, data)
    if kind is None:
        return
    before = len(report.buckets)
    for n, bucket in enumerate(data):
        _bucket(faults, report, f"{place}.data[{n}]", bucket, kind)
    found = report.buckets[before:]
    more = page.get("has_more", False)
    if not isinstance(more, bool):
        faults.add(place, "has_more", "is neither true nor false", _PAGE_REMEDY)
    if found:
        cursor = str(page.get("next_page") or "") if more is True else None
        start, end = min(b.start for b in found), max(b.end for b in found)
        report.pages.append(Page(kind, place, start, end, cursor))


def _kind(faults: Collector, place: str, data: list[Any]) -> Kind | None:
    """What the first result of the page is."""
    known: dict[str, Kind] = {USAGE_RESULT: "usage", COSTS_RESULT: "costs"}
    for n, bucket in enumerate(data):
        for m, result in enumerate(_results(bucket) or ()):
            name = result.get("object") if isinstance(result, Mapping) else None
            if isinstance(name, str) and name in known:
                return known[name]
            at = f"{place}.data[{n}].results[{m}]"
            remedy = f"Export completions ({USAGE_RESULT}) or costs ({COSTS_RESULT})"
            told = str(name)[:80]
            faults.add(at, "object", f"is {told!r}, which is not read here", remedy)
            return None
    return "empty"


def _results(bucket: Any) -> list[Any] | None:
    """Older releases of the API's own description call it `result`."""
    found = bucket.get("results", bucket.get("result")) if isinstance(bucket, Mapping) else None
    return found if isinstance(found, list) else None


def _bucket(faults: Collector, report: Report, place: str, bucket: Any, kind: Kind) -> None:
    results = _results(bucket)
    if results is None or bucket.get("object") != "bucket":
        faults.add(place, "results", "is no bucket with results", _PAGE_REMEDY)
        return
    start = numbers.count(faults, place, "start_time", bucket.get("start_time"))
    end = numbers.count(faults, place, "end_time", bucket.get("end_time"))
    if not 0 <= start < SECONDS_MAX or not is_width(faults, place, start, end):
        return
    report.buckets.append(Bucket(kind, start, end, place))
    read: Callable[[Collector, str, Mapping[str, Any], int], Line | None]
    expected, read = (USAGE_RESULT, _usage) if kind == "usage" else (COSTS_RESULT, _costs)
    for n, result in enumerate(results):
        at = f"{place}.results[{n}]"
        if not isinstance(result, Mapping) or result.get("object") != expected:
            faults.add(at, "object", f"is not {expected}, as the page's others are", _PAGE_REMEDY)
            continue
        line = read(faults, at, result, start)
        if line is not None:
            report.lines.append(line)


def _usage(faults: Collector, place: str, result: Mapping[str, Any], start: int) -> Line | None:
    model = _name(faults, place, result, "model")
    if not model:
        remedy = "Export it again with group_by[]=model"
        faults.add(place, "model", "is missing: the usage is not told by model", remedy)
        return None
    prompt = numbers.count(faults, place, "input_tokens", result.get("input_tokens"))
    # The API leaves out what is 0 in some results, and says null in others.
    cached_text = result.get("input_cached_tokens")
    cached = numbers.count(faults, place, "input_cached_tokens", cached_text or Decimal(0))
    if cached > prompt:
        problem = f"is {cached}, more than all input tokens ({prompt})"
        faults.add(place, "input_cached_tokens", problem, "Export it again")
    return Line(
        day=day_of(start),
        model=model,
        project=_name(faults, place, result, "project_id"),
        key=_name(faults, place, result, "api_key_id"),
        requests=numbers.count(
            faults, place, "num_model_requests", result.get("num_model_requests")
        ),
        prompt_tokens=prompt,
        cached_prompt_tokens=cached,
        completion_tokens=numbers.count(
            faults, place, "output_tokens", result.get("output_tokens")
        ),
    )


def _costs(faults: Collector, place: str, result: Mapping[str, Any], start: int) -> Line | None:
    item = _name(faults, place, result, "line_item")
    if not item:
        remedy = "Export it again with group_by[]=line_item"
        faults.add(place, "line_item", "is missing: the costs are not told by model", remedy)
        return None
    amount = result.get("amount")
    if not isinstance(amount, Mapping):
        faults.add(place, "amount", "is missing", "Export it again")
        return None
    currency = amount.get("currency")
    if not isinstance(currency, str) or currency.lower() != CURRENCY:
        problem = f"is {currency!r}; the ledger counts in USD alone"
        faults.add(place, "amount.currency", problem, "Export an organisation billed in USD")
    return Line(
        day=day_of(start),
        model=model_of_line_item(item),
        project=_name(faults, place, result, "project_id"),
        key=_name(faults, place, result, "api_key_id"),
        amount_usd=numbers.amount_usd(faults, place, "amount.value", amount.get("value")),
    )


def _name(faults: Collector, place: str, result: Mapping[str, Any], field: str) -> str:
    value = result.get(field)
    if value is None:
        return ""
    if not isinstance(value, str) or not is_name(value):
        faults.add(place, field, NO_NAME, "Export it again")
        return ""
    return value
