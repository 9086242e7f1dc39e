"""An average that follows what happens now, of a replica's times and speeds."""

WEIGHT = 0.2
"""Of the newest value: after some ten of them, what was before no longer counts."""


class Average:
    """Exponentially weighted; `value` is 0 before the first."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, value: float) -> None:
        known = self.value or value
        self.value = known + WEIGHT * (value - known)
