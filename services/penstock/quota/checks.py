"""Checks of what callers send: every fault of a message at once, each with its field and limit."""

import re
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.core import errors
from penstock.core.errors import FieldViolation
from penstock.core.money import format_usd
from penstock.quota.account import AccountKind, NumberedKind, parse_id, parse_numbered
from penstock.quota.ledger import AMOUNT_NANO_USD_MAX

_UUID7 = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Faults:
    """Collects faults; the first one's reason is the error's."""

    __slots__ = ("_reason", "_violations")

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []
        self._reason: str | None = None

    def add(self, field: str, reason: str, description: str) -> None:
        self._violations.append(FieldViolation(field, description))
        self._reason = self._reason or reason

    def check(self) -> None:
        """Raises InvalidRequest if there is any."""
        if self._violations:
            raise errors.InvalidRequest.of(self._violations, reason=self._reason)

    def text(self, field: str, value: str, *, length_max: int, length_min: int = 0) -> str:
        if not length_min <= len(value) <= length_max:
            self.add(
                field, f"{_upper(field)}_INVALID", f"takes {length_min} to {length_max} characters"
            )
        elif "\0" in value:
            self.add(field, f"{_upper(field)}_INVALID", "takes no NUL character")
        return value

    def integer(self, field: str, value: int, *, low: int, high: int) -> int:
        if not low <= value <= high:
            self.add(field, f"{_upper(field)}_INVALID", f"takes {low} to {high}, not {value}")
        return value

    def amount(self, field: str, value: int, *, high: int = AMOUNT_NANO_USD_MAX) -> int:
        """Nano-USD."""
        if value < 0:
            self.add(field, "AMOUNT_NEGATIVE", f"is {value}; an amount is 0 or more nano-USD")
        elif value > high:
            self.add(
                field,
                "AMOUNT_TOO_LARGE",
                f"is {value}; at most {high} nano-USD ({format_usd(high)} USD)",
            )
        return value

    def uuid7(self, field: str, value: str) -> int:
        """The id's time in ms."""
        # Only the canonical spelling: one id must not have two texts.
        if _UUID7.fullmatch(value):
            return int(value[:8] + value[9:13], 16)
        self.add(field, f"{_upper(field)}_INVALID", "takes a UUIDv7, lower case, with hyphens")
        return 0

    def account(self, field: str, value: str, *kinds: AccountKind) -> int:
        number = parse_id(value, *kinds)
        if number is None:
            shape = " or ".join(f"{kind}_<number>" for kind in kinds)
            self.add(field, f"{_upper(field)}_INVALID", f"takes an id of the form {shape}")
            return 0
        return number

    def numbered(self, field: str, value: str, kind: NumberedKind) -> int:
        number = parse_numbered(value, kind)
        if number is None:
            self.add(field, f"{_upper(field)}_INVALID", f"takes an id of the form {kind}_<number>")
            return 0
        return number

    def instant(self, field: str, value: Timestamp) -> datetime | None:
        """In UTC."""
        try:
            return value.ToDatetime(UTC)
        except (ValueError, OverflowError):
            self.add(field, f"{_upper(field)}_INVALID", "lies outside the years 1 to 9999")
            return None


def _upper(field: str) -> str:
    return field.split("[", maxsplit=1)[0].replace(".", "_").upper()
