"""Numbers of an export: exact from their decimal text. No float ever touches them."""

from decimal import Decimal, InvalidOperation
from fractions import Fraction

from penstock.cli.reports.faults import Collector
from penstock.core.money import NANO_PER_USD

COUNT_MAX = 10**15
"""Requests or tokens of one line. More is no count of anything."""
AMOUNT_USD_MAX = 10**9
"""Of one line; sums of a million lines stay within int64 nano-USD only below it."""
PLACES_MAX = 60
"""Decimal places; providers print up to 30. More would only cost memory."""
DIGITS_MAX = 100

_AMOUNT = f"Write a plain decimal of USD from 0 to {AMOUNT_USD_MAX}, e.g. 0.0123"
_COUNT = f"Write a whole number from 0 to {COUNT_MAX}"


def decimal_of(value: object) -> Decimal | None:
    """A number, or a number in text; None: neither. NaN and infinities stay what they are."""
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str):
        return None
    # Decimal also takes underscores and the digits of every script.
    if not value.isascii() or "_" in value:
        return None
    try:
        return Decimal(value.strip())
    except InvalidOperation:
        return None


def of_json(text: str) -> Decimal:
    """Of JSON's own numbers; one whose exponent no Decimal has is none: NaN, to be told as such."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal("NaN")


def count(faults: Collector, place: str, field: str, value: object) -> int:
    """Requests or tokens; "59200.0" is whole, too. 0 where it is a fault."""
    number = _plain(faults, place, field, value, _COUNT)
    if number is None:
        return 0
    if number > COUNT_MAX:
        faults.add(place, field, f"is {number}, more than {COUNT_MAX}", _COUNT)
        return 0
    if number != number.to_integral_value():
        faults.add(place, field, f"is {number}, no whole number", _COUNT)
        return 0
    return int(number)


def amount_usd(faults: Collector, place: str, field: str, value: object) -> Fraction:
    """Exact USD; 0 where it is a fault."""
    number = _plain(faults, place, field, value, _AMOUNT)
    if number is None:
        return Fraction(0)
    if number > AMOUNT_USD_MAX:
        faults.add(place, field, f"is {number} USD, more than {AMOUNT_USD_MAX}", _AMOUNT)
        return Fraction(0)
    return Fraction(number)


def nano_usd(amount: Fraction) -> int:
    """To the nearest nano-USD, half up: once for a sum, never for its parts."""
    return int((amount * NANO_PER_USD + Fraction(1, 2)).__floor__())


def _plain(faults: Collector, place: str, field: str, value: object, remedy: str) -> Decimal | None:
    """Finite, not negative, and of a size that can be computed with."""
    number = decimal_of(value)
    if number is None:
        problem = "is missing" if value in (None, "") else f"is {str(value)[:40]!r}, no number"
        faults.add(place, field, problem, remedy)
        return None
    if not number.is_finite():
        faults.add(place, field, f"is {number}, no finite number", remedy)
        return None
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    if len(digits) > DIGITS_MAX or exponent < -PLACES_MAX or exponent > DIGITS_MAX:
        faults.add(place, field, "has more digits than any amount or count", remedy)
        return None
    if number < 0:
        faults.add(place, field, f"is negative ({number})", remedy)
        return None
    return number
