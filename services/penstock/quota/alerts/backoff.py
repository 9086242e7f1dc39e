"""When a delivery is tried again, and when it is given up."""

TRIES_MAX = 12
"""At 0 s, 5 s, 25 s, 2 min, 7 min, 28 min, 2 h, then every 4 h up to 22 h: a receiver that was down
for a working day hears all; one that is gone does not fill the table."""
FIRST_MS = 5_000
FACTOR = 4
LONGEST_MS = 4 * 3_600_000
JITTER = 0.25
"""Part of each delay by which it varies: alerts that failed together do not come back together."""
RETRY_AFTER_MAX_SECONDS = LONGEST_MS // 1000
"""A receiver may ask for a pause, but not postpone its alerts beyond the day."""


def delay_ms(tries: int, chance: float, retry_after_seconds: int | None = None) -> int | None:
    """Until the next try, after `tries` failed ones; None: no more.

    Args:
        tries: From 1.
        chance: Uniform in [0, 1).
        retry_after_seconds: What the receiver asked for; it is waited for at least.
    """
    assert tries >= 1
    if tries >= TRIES_MAX:
        return None
    delay = min(FIRST_MS * FACTOR ** (tries - 1), LONGEST_MS)
    delay = int(delay * (1 + JITTER * (2 * chance - 1)))
    asked = min(retry_after_seconds or 0, RETRY_AFTER_MAX_SECONDS) * 1000
    return max(delay, asked)
