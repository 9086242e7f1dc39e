"""Secrets of one machine's Penstock: made once, kept 0600, handed to children by environment."""

import secrets as random_secrets
from dataclasses import asdict, dataclass, field, fields

from penstock.cli.state import State, read_json, write_json

TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Secrets:
    service_token: str = field(repr=False)
    admin_token: str = field(repr=False)
    router_token: str = field(repr=False)
    ray_token: str = field(repr=False)
    traces_token: str = field(repr=False)
    stand_in_key: str = field(repr=False)
    quota_password: str = field(repr=False)
    cache_password: str = field(repr=False)


def load_or_make(state: State) -> Secrets:
    """The kept secrets; what is missing (a first start, a newer release) is made and kept."""
    kept = read_json(state.secrets)
    values = {f.name: str(kept.get(f.name) or _new()) for f in fields(Secrets)}
    found = Secrets(**values)
    if asdict(found) != kept:
        write_json(state.secrets, asdict(found))
    return found


def _new() -> str:
    # Hex: it goes into DSNs and headers, where other characters would need quoting.
    return random_secrets.token_hex(TOKEN_BYTES)
