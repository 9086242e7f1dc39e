"""Accounts and keys as people name them: an id, `key:NAME`, `team:NAME`, `org:NAME`, or a name."""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.cli.admin import Admin
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import Principal

_KINDS = {admin_pb2.Account.KIND_ORG: "org", admin_pb2.Account.KIND_TEAM: "team"}


@dataclass(frozen=True, slots=True)
class Named:
    """Something that can have a budget."""

    kind: str
    id: str
    name: str

    @property
    def text(self) -> str:
        return f"{self.kind}:{self.name}"


async def directory(admin: Admin) -> list[Named]:
    """All of them; a revoked key too, for it has spent."""
    accounts = await admin.call("ListAccounts", admin_pb2.ListAccountsRequest())
    keys = await admin.call("ListKeys", admin_pb2.ListKeysRequest())
    assert isinstance(accounts, admin_pb2.ListAccountsResponse)
    assert isinstance(keys, admin_pb2.ListKeysResponse)
    found = [Named(_KINDS.get(a.kind, "account"), a.id, a.name) for a in accounts.accounts]
    # Active keys first: a bare name means the one that can be used.
    ordered = sorted(keys.keys, key=lambda k: k.state != Principal.STATE_ACTIVE)
    return found + [Named("key", k.id, k.name) for k in ordered]


def find(known: Sequence[Named], text: str, *, kinds: Sequence[str] = ()) -> Named:
    """The one that `text` means.

    Raises:
        CliError: none, or more than one.
    """
    fitting = [n for n in known if not kinds or n.kind in kinds]
    hits = [n for n in fitting if n.id == text]
    if not hits:
        kind, colon, name = text.partition(":")
        hits = [n for n in fitting if (n.kind, n.name) == (kind, name)] if colon else []
    if not hits:
        hits = [n for n in fitting if n.name == text]
    if len(hits) == 1:
        return hits[0]
    what = " or ".join(kinds) or "org, team or key"
    if not hits:
        names = ", ".join(n.text for n in fitting[:20]) or "none"
        raise CliError(f"there is no {what} {text!r}; there are: {names}", code=BAD_USAGE)
    listed = ", ".join(f"{n.text} ({n.id})" for n in hits)
    raise CliError(f"{text!r} is more than one {what}: {listed}; say its id", code=BAD_USAGE)


def label(known: Sequence[Named], identity: str) -> str:
    return next((n.text for n in known if n.id == identity), identity)
