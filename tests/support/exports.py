"""Exports of a provider as text: what OpenAI's usage and costs API answers, and CSV."""

import json
from datetime import date
from typing import Any

from penstock.cli.reports.rows import DAY_SECONDS, seconds_of

DAY = date(2026, 11, 1)
START = seconds_of(DAY)


def usage(**fields: Any) -> dict[str, Any]:
    found = {
        "object": "organization.usage.completions.result",
        "input_tokens": 1000,
        "output_tokens": 500,
        "input_cached_tokens": 800,
        "num_model_requests": 5,
        "project_id": "proj_a",
        "user_id": None,
        "api_key_id": "key_1",
        "model": "gpt-4o-mini-2024-07-18",
        "batch": False,
    }
    return found | fields


def costs(value: str = "0.06", currency: str = "usd", **fields: Any) -> dict[str, Any]:
    """`value` is what stands in the JSON: a number, or whatever a test wants there."""
    found = {
        "object": "organization.costs.result",
        "amount": {"value": f"<{value}>", "currency": currency},
        "line_item": "gpt-4o-mini-2024-07-18, input",
        "project_id": "proj_a",
    }
    return found | fields


def bucket(day: int, *results: Any, start: int = 0, width: int = DAY_SECONDS) -> dict[str, Any]:
    """Of the so-manieth day of the month, from 0."""
    begins = START + day * DAY_SECONDS + start
    return {
        "object": "bucket",
        "start_time": begins,
        "end_time": begins + width,
        "results": list(results),
    }


def page(*buckets: Any, next_page: str | None = None, **fields: Any) -> str:
    told = {
        "object": "page",
        "data": list(buckets),
        "has_more": next_page is not None,
        "next_page": next_page,
    }
    # An amount's text as it is: json would write a float.
    return json.dumps(told | fields).replace('"<', "").replace('>"', "")
