"""Accounts as people name them: an id, `org:acme`, `team:acme/search`, `key:ci`, `pool:openai`.

What two accounts bear is told apart by where they lie: `key:acme/search/ci`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.cli.admin import Admin, access, opened
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.state import State
from penstock.core.errors import PenstockError
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import Principal

_KINDS = {admin_pb2.Account.KIND_ORG: "org", admin_pb2.Account.KIND_TEAM: "team"}

KINDS = ("org", "team", "key", "pool")

LISTED_MAX = 20
"""Of names in a refusal: enough to find a slip of the pen."""


@dataclass(frozen=True, slots=True)
class Named:
    """Something that can have a budget; `path` names what it lies in, from the organisation on.

    `commercial`: itself is, whatever lies above it.
    """

    kind: str
    id: str
    name: str
    path: tuple[str, ...] = ()
    active: bool = True
    commercial: bool = False

    @property
    def text(self) -> str:
        return f"{self.kind}:{self.name}"

    @property
    def full(self) -> str:
        """Unique, save of keys."""
        return f"{self.kind}:{'/'.join((*self.path, self.name))}"

    def is_called(self, name: str) -> bool:
        """By its name, or by that and the end of its path."""
        if name == self.name:
            return True
        *path, last = name.split("/")
        return bool(path) and last == self.name and list(self.path[-len(path) :]) == path


async def directory(admin: Admin) -> list[Named]:
    """All of them; a revoked key too, for it has spent."""
    accounts, keys, pools = await asyncio.gather(
        admin.call("ListAccounts", admin_pb2.ListAccountsRequest()),
        admin.call("ListKeys", admin_pb2.ListKeysRequest()),
        admin.call("ListPools", admin_pb2.ListPoolsRequest()),
    )
    assert isinstance(accounts, admin_pb2.ListAccountsResponse)
    assert isinstance(keys, admin_pb2.ListKeysResponse)
    assert isinstance(pools, admin_pb2.ListPoolsResponse)
    names = {a.id: a.name for a in accounts.accounts}
    found = []
    for one in accounts.accounts:
        if one.kind in _KINDS:
            lies_in = (names.get(one.org_id, one.org_id),) if one.org_id else ()
            kind = _KINDS[one.kind]
            found.append(Named(kind, one.id, one.name, lies_in, commercial=one.commercial))
    for key in keys.keys:
        path = (names.get(key.org_id, key.org_id), names.get(key.team_id, key.team_id))
        active = key.state not in {Principal.STATE_REVOKED, Principal.STATE_EXPIRED}
        found.append(Named("key", key.id, key.name, path, active))
    return found + [Named("pool", p.id, p.name) for p in pools.pools]


def by_id(known: Sequence[Named]) -> dict[str, str]:
    """The full name of each."""
    return {one.id: one.full for one in known}


def levels(known: Sequence[Named], one: Named) -> list[Named]:
    """What it lies in, from the organisation on, and itself."""
    kinds = KINDS[: len(one.path)]
    fulls = [f"{kind}:{'/'.join(one.path[:depth])}" for depth, kind in enumerate(kinds, 1)]
    return [*(n for n in known if n.full in fulls), one]


async def if_known(state: State) -> dict[str, str]:
    """The same of the ledger that is known here; none where it is not, or is away."""
    try:
        async with opened(access(state)) as admin:
            return by_id(await directory(admin))
    except (CliError, PenstockError):
        return {}


def find(known: Sequence[Named], text: str, *, kinds: Sequence[str] = ()) -> Named:
    """The one that `text` means; a name of several keys means the one that can be used.

    Raises:
        CliError: none, or more than one.
    """
    fitting = [n for n in known if not kinds or n.kind in kinds]
    hits = [n for n in fitting if n.id == text]
    if not hits:
        kind, colon, name = text.partition(":")
        hits = [n for n in fitting if n.kind == kind and n.is_called(name)] if colon else []
    if not hits:
        hits = [n for n in fitting if n.is_called(text)]
    if len(hits) > 1:
        active = [n for n in hits if n.active]
        hits = active if len(active) == 1 else hits
    if len(hits) == 1:
        return hits[0]
    *first, last = kinds or KINDS
    what = f"{', '.join(first)} or {last}" if first else last
    if not hits:
        raise CliError(
            f"there is no {what} {text!r}; there are: {_listed(fitting)}", code=BAD_USAGE
        )
    ways = ", ".join(f"{n.full} ({n.id})" for n in hits[:LISTED_MAX])
    raise CliError(
        f"{text!r} is more than one {what}: {ways}; write one of these, or its id",
        code=BAD_USAGE,
    )


def _listed(fitting: Sequence[Named]) -> str:
    told = ", ".join(n.full for n in fitting[:LISTED_MAX]) or "none"
    return f"{told}, …" if len(fitting) > LISTED_MAX else told


def label(known: Sequence[Named], identity: str) -> str:
    """Its name, with its path where another bears the same; else its id."""
    one = next((n for n in known if n.id == identity), None)
    if one is None:
        return identity
    twins = [n for n in known if n.text == one.text and (n.active or n is one)]
    return one.text if len(twins) == 1 else one.full
