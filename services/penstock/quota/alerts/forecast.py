"""Whether a budget will be used up before its window ends.

The estimator is the straight line from the window's beginning: what was spent in the part that has
passed goes on at the same rate. With `spent` of `limit` after `elapsed` of the window,

    exhausted_at = start + elapsed * limit / spent,

and the budget is used up before the window ends iff spent * length > limit * elapsed. All of it is
integers (nano-USD, microseconds), so equal facts give equal answers. Windows are instants: a day on
which clocks change has 23 or 25 hours, and is reckoned with as such.

It speaks only after a tenth of the window and a fifth of the limit: before, one early request
would be taken for a habit. A minute and an hour are over before anybody could act, a total never
ends: these get no forecast. What a straight line cannot know is a rhythm: a weekend's quiet, a
nightly job.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

WINDOW_PARTS_MIN = 10
"""Speaks after 1/10 of the window…"""
LIMIT_PARTS_MIN = 5
"""… and after 1/5 of the limit."""
KINDS = ("day", "week", "month")

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Spending:
    """A budget's open window: [start, end), at `now`. `spent` is what is posted or in suspense."""

    spent_nano_usd: int
    limit_nano_usd: int
    start: datetime
    now: datetime
    end: datetime


def exhausted_at(spending: Spending) -> datetime | None:
    """When the limit is reached, floored to the microsecond; None: not before the end, or used up
    already, or too early to tell.
    """
    s = spending
    elapsed, length = (s.now - s.start) // _MICROSECOND, (s.end - s.start) // _MICROSECOND
    assert 0 <= elapsed < length
    if not 0 < s.spent_nano_usd < s.limit_nano_usd:
        return None
    if elapsed * WINDOW_PARTS_MIN < length:
        return None
    if s.spent_nano_usd * LIMIT_PARTS_MIN < s.limit_nano_usd:
        return None
    if s.spent_nano_usd * length <= s.limit_nano_usd * elapsed:
        return None
    return s.start + _MICROSECOND * (elapsed * s.limit_nano_usd // s.spent_nano_usd)
