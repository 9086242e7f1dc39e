"""What a client says in headers: deadline, data class, cache control.

The SDKs' own `x-stainless-*` headers are telemetry and are not read: they carry a client's time-out
of 600 s by default, which would silently take the place of the catalogue's default deadline.
"""

import re
from collections.abc import Mapping

from penstock.router.v1.router_pb2 import (
    DATA_CLASS_ANY,
    DATA_CLASS_LOCAL_ONLY,
    DATA_CLASS_UNSPECIFIED,
    CacheControl,
    DataClass,
)
from penstock.router.validation.faults import Faults, shown

TIMEOUT_HEADER = "x-penstock-timeout-ms"
DATA_CLASS_HEADER = "x-penstock-data-class"
_DATA_CLASSES = {
    "": DATA_CLASS_UNSPECIFIED,
    "any": DATA_CLASS_ANY,
    "local-only": DATA_CLASS_LOCAL_ONLY,
}
_WHOLE = re.compile(r"-?[0-9]{1,15}")


def timeout_seconds(headers: Mapping[str, str], faults: Faults) -> float | None:
    """The client's deadline; None: the header is absent. Its range is `validation`'s task."""
    text = headers.get(TIMEOUT_HEADER, "").strip()
    if not text:
        return None
    if not _WHOLE.fullmatch(text):
        faults.add(TIMEOUT_HEADER, f"{shown(text)} is no whole number of milliseconds; e.g. 30000")
        return None
    return int(text) / 1000


def data_class(headers: Mapping[str, str], faults: Faults) -> DataClass.ValueType:
    text = headers.get(DATA_CLASS_HEADER, "").strip().lower()
    if text not in _DATA_CLASSES:
        faults.add(DATA_CLASS_HEADER, f"{shown(text)} is no data class; use local-only or any")
        return DATA_CLASS_UNSPECIFIED
    return _DATA_CLASSES[text]


def cache_control(headers: Mapping[str, str], faults: Faults) -> CacheControl:
    """no-cache, no-store and max-age of RFC 9111; others are for caches on the way, not for us."""
    control = CacheControl()
    for directive in headers.get("cache-control", "").split(","):
        name, _, value = directive.strip().lower().partition("=")
        if name == "no-cache":
            control.no_cache = True
        elif name == "no-store":
            control.no_store = True
        elif name == "max-age":
            text = value.strip('"')
            if _WHOLE.fullmatch(text):
                control.max_age_seconds = int(text)
            else:
                faults.add("cache-control", f"max-age={shown(text)} is no whole number of seconds")
    return control
