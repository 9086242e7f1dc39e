"""What several of the operator's calls share: who calls and why, names, scopes, windows."""

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.core.admin_headers import (
    ACTOR,
    ACTOR_CHARACTERS_MAX,
    DRY_RUN,
    REASON,
    REASON_CHARACTERS_MAX,
)
from penstock.quota.account import (
    ACCOUNT_KINDS,
    ACCOUNT_NAME,
    AccountKind,
    WindowKind,
    kind_of,
)
from penstock.quota.budget import Scope
from penstock.quota.checks import Faults
from penstock.quota.store.changes import Change
from penstock.quota.v1 import admin_pb2

ACTOR_DEFAULT = "admin"
NAME_LENGTH_MAX = 128
GLOB_LENGTH_MAX = 256
SCOPE_NAMES_MAX = 64
"""Each is compared with each attempt's provider or model."""
SCOPE_TAGS_MAX = 32
TAG_NAME_LENGTH_MAX = 64
TAG_VALUE_LENGTH_MAX = 512

Context = grpc.aio.ServicerContext[Any, Any]

WINDOWS: dict[int, WindowKind] = {
    admin_pb2.Budget.WINDOW_TOTAL: "total",
    admin_pb2.Budget.WINDOW_MONTH: "month",
    admin_pb2.Budget.WINDOW_MINUTE: "minute",
    admin_pb2.Budget.WINDOW_HOUR: "hour",
    admin_pb2.Budget.WINDOW_DAY: "day",
    admin_pb2.Budget.WINDOW_WEEK: "week",
}


def change_of(context: Context) -> Change:
    """Who calls, why, and whether only for a try. Raises InvalidRequest (ACTOR_INVALID,
    REASON_INVALID, DRY_RUN_INVALID).
    """
    return read_change(context.invocation_metadata() or ())


def read_change(metadata: Iterable[tuple[str, str | bytes]]) -> Change:
    faults = Faults()
    given = {name: _text(value) for name, value in metadata}
    actor = given.get(ACTOR, ACTOR_DEFAULT)
    if not 1 <= len(actor) <= ACTOR_CHARACTERS_MAX or not actor.isprintable():
        faults.add(
            ACTOR, "ACTOR_INVALID", f"takes 1 to {ACTOR_CHARACTERS_MAX} printable characters"
        )
    reason = given.get(REASON, "")
    if len(reason) > REASON_CHARACTERS_MAX or not reason.isprintable():
        faults.add(
            REASON, "REASON_INVALID", f"takes at most {REASON_CHARACTERS_MAX} printable ones"
        )
    dry_run = given.get(DRY_RUN)
    if dry_run not in {None, "1"}:
        faults.add(DRY_RUN, "DRY_RUN_INVALID", "takes 1, or is left out")
    faults.check()
    return Change(actor=actor, reason=reason, dry_run=dry_run is not None)


def _text(value: str | bytes) -> str:
    """Percent-encoded UTF-8 as text: metadata itself holds printable ASCII only."""
    return unquote(value.decode(errors="replace") if isinstance(value, bytes) else value)


def any_account(
    faults: Faults, field: str, value: str, *kinds: AccountKind
) -> tuple[AccountKind, int]:
    """Of these kinds; none given: of all. A fault's answer is of no use."""
    number = faults.account(field, value, *(kinds or ACCOUNT_KINDS))
    return (kind_of(value), number) if number else ("org", 0)


def optional_account(value: str, *kinds: AccountKind) -> tuple[AccountKind, int] | None:
    """Of a filter; empty: none. Raises InvalidRequest (ACCOUNT_ID_INVALID)."""
    if not value:
        return None
    faults = Faults()
    account = any_account(faults, "account_id", value, *kinds)
    faults.check()
    return account


def plain_name(faults: Faults, field: str, value: str) -> str:
    if not ACCOUNT_NAME.fullmatch(value):
        faults.add(field, f"{field.upper()}_INVALID", "takes 1 to 64 of a-z, 0-9 and -")
    return value


def scope(faults: Faults, message: admin_pb2.Scope) -> Scope:
    """Names are globs, in which `*` stands for any characters."""
    if len(message.tags) > SCOPE_TAGS_MAX:
        faults.add("scope.tags", "SCOPE_TAGS_INVALID", f"takes at most {SCOPE_TAGS_MAX} tags")
    for name, value in message.tags.items():
        field = "scope.tags"
        faults.text(field, name, length_min=1, length_max=TAG_NAME_LENGTH_MAX)
        faults.text(field, value, length_max=TAG_VALUE_LENGTH_MAX)
    return Scope(
        providers=_globs(faults, "scope.providers", message.providers),
        models=_globs(faults, "scope.models", message.models),
        tags=dict(message.tags),
    )


def _globs(faults: Faults, field: str, globs: Sequence[str]) -> tuple[str, ...]:
    if len(globs) > SCOPE_NAMES_MAX:
        reason = f"{field.replace('.', '_').upper()}_INVALID"
        faults.add(field, reason, f"takes at most {SCOPE_NAMES_MAX} names, not {len(globs)}")
        return ()
    for i, glob in enumerate(globs):
        faults.text(f"{field}[{i}]", glob, length_min=1, length_max=GLOB_LENGTH_MAX)
    return tuple(globs)


def scope_message(value: Scope) -> admin_pb2.Scope:
    return admin_pb2.Scope(providers=value.providers, models=value.models, tags=value.tags)


def stamp(value: Any) -> Timestamp | None:
    """None stays absent."""
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value)
    return message
