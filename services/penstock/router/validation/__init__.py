"""Bad input: every fault of a request at once, each with its field, its limit and its remedy."""

from penstock.router.validation.request import checked_deadline, validate

__all__ = ["checked_deadline", "validate"]
