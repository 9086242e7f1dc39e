"""The faults of one request, collected; told as one InvalidRequest."""

import math

from penstock.core.errors import FieldViolation, InvalidRequest

TEXT_CHARACTERS_MAX = 2_000
"""Of all faults together: they travel twice in gRPC trailers, which peers cut at 8 KiB."""

SHOWN_CHARACTERS_MAX = 48
"""Of a value that is quoted back."""


def shown(value: object) -> str:
    """A value as it is quoted in an error: printable ASCII and short."""
    # Cut before it is quoted too: it may have megabytes.
    text = ascii(value[: SHOWN_CHARACTERS_MAX + 1] if isinstance(value, str) else value)
    if len(text) <= SHOWN_CHARACTERS_MAX:
        return text
    return f"{text[:SHOWN_CHARACTERS_MAX]}…"


class Faults:
    """Collects violations in the order of the fields, as many as can be told."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []
        self._characters = 0
        self.are_too_many = False
        """Further ones are left out: whoever looks through a long list may stop."""

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, field: str, description: str) -> None:
        self._characters += len(field) + len(description)
        if self._found and self._characters > TEXT_CHARACTERS_MAX:
            self.are_too_many = True
            return
        self._found.append(FieldViolation(field, description))

    def within(self, field: str, value: float, low: float, high: float, remedy: str) -> None:
        """Adds a fault where `value` is no number from `low` to `high`."""
        if not math.isfinite(value) or not low <= value <= high:
            self.add(field, f"{value} is not from {low:g} to {high:g}; {remedy}")

    def error(self) -> InvalidRequest:
        """All that was found."""
        if not self.are_too_many:
            return InvalidRequest.of(self._found)
        more = FieldViolation("(request)", "has more faults; mend these first")
        return InvalidRequest.of([*self._found, more])
