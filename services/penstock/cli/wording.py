"""A service's words as an operator types and reads them: options for fields, USD for nano-USD,
names beside ids.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from penstock.core import admin_headers
from penstock.core.money import format_usd

_OPTIONS = {
    "account_id": "--account",
    "adjustment_key": "--key",
    "allowed_models": "--model",
    "amount_nano_usd": "AMOUNT",
    "commercial_use": "--commercial-use/--non-commercial",
    "expires_at": "--expires",
    "grant_key": "--key",
    "interval_ms": "--interval-ms",
    "key_id": "KEY",
    "limit_nano_usd": "LIMIT",
    "name": "the name",
    "never_expires": "--never-expires",
    "operation": "--operation",
    "org_id": "--org",
    "outcome": "--outcome",
    "overlap_seconds": "--overlap",
    "page_size": "--page-size",
    "page_token": "--page-token",
    "providers": "--provider",
    "reason": "--reason",
    "request_id": "--request",
    "reservation_id": "--reservation",
    "scope.models": "--model",
    "scope.providers": "--provider",
    "scope.tags": "--tag",
    "since": "--since",
    "soft_percents": "--soft",
    "starts_at": "--starts",
    "team_id": "--team",
    "time_zone": "--time-zone",
    "until": "--until",
    "window": "--window",
    admin_headers.ACTOR: "--actor",
    admin_headers.REASON: "--reason",
}
"""By the contract's fields."""

_OF_METHOD = {
    ("CreateGrant", "expires_at"): "--expires or --for",
    ("UpdateKey", "expires_at"): "--expires or --at",
    ("ResolveSuspense", "reservation_id"): "RESERVATION",
}

_AMOUNT = re.compile(r"(-?[0-9]+) nano-USD(?: \([0-9.]+ USD\))?")
_BARE = re.compile(r"^(is|was) (-?[0-9]+);")
_INDEX = re.compile(r"\[[0-9]+\]$")
_ID = re.compile(r"\b(?:(?:org|team|key|pool) )?((?:org|team|key|pool)_[1-9][0-9]*)\b")
"""With the word for its kind, which a name says itself."""

# Words of the language are left as they are: only what no sentence has.
_FIELD = re.compile(
    r"\b(?:"
    + "|".join(
        re.escape(f) for f in sorted(_OPTIONS, key=len, reverse=True) if re.search("[_.]", f)
    )
    + r")\b"
)


NO_NAMES: Mapping[str, str] = MappingProxyType({})


def option(field: str, method: str = "") -> str:
    """What an operator types for it; a field that is in no option as it is."""
    plain = _INDEX.sub("", field)
    return _OF_METHOD.get((method, plain)) or _OPTIONS.get(plain, field)


def sentence(text: str, method: str = "", names: Mapping[str, str] = NO_NAMES) -> str:
    """With options, USD and (by id) names."""
    text = _AMOUNT.sub(lambda found: f"{format_usd(int(found[1]))} USD", text)
    text = _FIELD.sub(lambda found: option(found[0], method), text)
    return _ID.sub(
        lambda found: f"{names[found[1]]} ({found[1]})" if found[1] in names else found[0], text
    )


def accounts_in(text: str) -> list[str]:
    """The ids of accounts that it names."""
    return _ID.findall(text)


def fault(field: str, description: str, method: str = "") -> str:
    """A violation as a line."""
    if field.endswith("_nano_usd"):
        description = _BARE.sub(
            lambda found: f"{found[1]} {format_usd(int(found[2]))} USD;", description
        )
        description = description.replace("0 or more nano-USD", "0 USD or more")
    return f"{option(field, method)}: {sentence(description, method)}"
