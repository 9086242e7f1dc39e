"""What `budget set` and `limit set` did, told after the table and in the JSON document."""

from collections.abc import Sequence
from typing import Any

from penstock.cli.account_tables import CALENDAR, scope_text
from penstock.cli.as_json import as_dict
from penstock.cli.limit_arguments import Setting
from penstock.cli.tables import when
from penstock.core.money import format_usd
from penstock.quota.v1 import admin_pb2


def compared(
    made: Sequence[Setting], there: Sequence[Setting], *, zoned: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """The document of each, with `before` where it was there; and a line of each.

    The server does not tell what was before, so it is as it was listed just before the change: what
    another operator sets in between is told as if this change had made it.

    `zoned`: a time zone was asked for, which a rate limit does not tell.
    """
    documents, lines = [], []
    for one in made:
        document = as_dict(one)
        before = next((old for old in there if old.id == one.id), None)
        if before is not None:
            document["before"] = as_dict(before)
        documents.append(document)
        told = _told(one, before, zoned=zoned)
        lines.append(told if len(made) == 1 else f"{one.name}: {told}")
    return documents, lines


def _told(one: Setting, before: Setting | None, *, zoned: bool) -> str:
    if before is None:
        return "created"
    now = _fields(one, zoned=zoned)
    was = _fields(before, zoned=zoned)
    changed = [f"{field} was {text}" for field, text in was.items() if text != now[field]]
    return f"changed: {', '.join(changed)}" if changed else "nothing changed"


def _fields(one: admin_pb2.Budget | admin_pb2.RateLimit, *, zoned: bool) -> dict[str, str]:
    """What can be set, named as the option is."""
    # The order of names means nothing.
    scope = admin_pb2.Scope(
        providers=sorted(one.scope.providers),
        models=sorted(one.scope.models),
        tags=one.scope.tags,
    )
    told = {
        "state": "closed" if one.closed else "open",
        "limit": _limit(one),
        "scope": scope_text(scope) or "everything",
    }
    if isinstance(one, admin_pb2.Budget):
        told["zone"] = one.time_zone
        told["soft"] = ",".join(str(percent) for percent in one.soft_percents)
    elif zoned and one.window in CALENDAR:
        # Otherwise a window that ended in between would look like a change.
        told["reset"] = when(one.resets_at)
    return told


def _limit(one: admin_pb2.Budget | admin_pb2.RateLimit) -> str:
    if isinstance(one, admin_pb2.RateLimit):
        return str(one.limit)
    return "unlimited" if one.unlimited else f"{format_usd(one.limit_nano_usd)} USD"
