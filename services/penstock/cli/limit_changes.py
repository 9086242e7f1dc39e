"""What `budget set` and `limit set` did, told after the table."""

from collections.abc import Sequence

from penstock.cli.account_tables import scope_text
from penstock.cli.limit_arguments import Setting
from penstock.core.money import format_usd
from penstock.quota.v1 import admin_pb2


def changes(made: Sequence[Setting]) -> list[str]:
    """A line of each: created, or what of it was otherwise before."""
    lines = [_told(one) for one in made]
    if len(made) == 1:
        return lines
    return [f"{one.name}: {line}" for one, line in zip(made, lines, strict=True)]


def _told(one: Setting) -> str:
    if not one.HasField("before"):
        return "created"
    now = _fields(one)
    was = _fields(one.before)
    changed = [f"{field} was {text}" for field, text in was.items() if text != now[field]]
    return f"changed: {', '.join(changed)}" if changed else "nothing changed"


def _fields(one: admin_pb2.Budget | admin_pb2.RateLimit) -> dict[str, str]:
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
        "zone": one.time_zone,
    }
    if isinstance(one, admin_pb2.Budget):
        told["soft"] = ",".join(str(percent) for percent in one.soft_percents)
    return told


def _limit(one: admin_pb2.Budget | admin_pb2.RateLimit) -> str:
    if isinstance(one, admin_pb2.RateLimit):
        return str(one.limit)
    return "unlimited" if one.unlimited else f"{format_usd(one.limit_nano_usd)} USD"
