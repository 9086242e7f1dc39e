"""A key of the caller's choosing that was used before, for something else: what differs is told."""

from collections.abc import Mapping

from penstock.core import errors
from penstock.core.money import format_usd


def reused(
    what: str, key: str, was: Mapping[str, object], asked: Mapping[str, object]
) -> errors.Conflict:
    """<WHAT>_KEY_REUSED; a violation for each field that differs, with what it was.

    `was` and `asked`: the same fields, by the contract's names; amounts in nano-USD.
    """
    differing = [field for field in asked if was[field] != asked[field]]
    listed = " and ".join(differing)
    return errors.Conflict(
        f"{what}_key {key!r} was used before, with another {listed}; ask for the same again, or"
        " take another key",
        reason=f"{what.upper()}_KEY_REUSED",
        metadata={f"{what}_key": key, "fields": ",".join(differing)},
        violations=[errors.FieldViolation(field, _told(field, was[field])) for field in differing],
    )


def _told(field: str, value: object) -> str:
    if isinstance(value, bool):
        return f"was {str(value).lower()}"
    if isinstance(value, int) and field.endswith("_nano_usd"):
        return f"was {format_usd(value)} USD"
    if isinstance(value, Mapping):
        value = [f"{name}={one}" for name, one in sorted(value.items())]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return f"was {value!r}" if value else "was not given"
