"""Spans of time as people write them."""

from datetime import UTC, datetime

import pytest

from penstock.cli import periods
from penstock.cli.errors import CliError

START = datetime(2027, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("45s", 45), ("90min", 5_400), ("24h", 86_400), ("7d", 604_800), ("2w", 1_209_600)],
)
def test_a_span_has_its_seconds(text: str, seconds: int) -> None:
    assert seconds == periods.seconds(text, "--overlap")


@pytest.mark.parametrize("text", ["", "24", "-1h", "1.5h", "1mo", "1y", "h", "١h", "1 h"])
def test_what_has_no_seconds_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(CliError, match=r"--overlap .* e\.g\. 90min, 24h") as caught:
        periods.seconds(text, "--overlap")
    assert 2 == caught.value.code


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("24h", datetime(2027, 12, 1, 12, tzinfo=UTC)),
        ("1mo", datetime(2027, 12, 30, 12, tzinfo=UTC)),
        ("3mo", datetime(2028, 2, 29, 12, tzinfo=UTC)),
        ("15mo", datetime(2029, 2, 28, 12, tzinfo=UTC)),
        ("2y", datetime(2029, 11, 30, 12, tzinfo=UTC)),
    ],
)
def test_a_month_later_is_the_same_day_or_the_last(text: str, end: datetime) -> None:
    assert end == periods.after(START, text, "--for")


@pytest.mark.parametrize("text", ["0d", "8000y", "999999999w", "soon", ""])
def test_what_has_no_end_is_refused(text: str) -> None:
    with pytest.raises(CliError, match="--for"):
        periods.after(START, text, "--for")
