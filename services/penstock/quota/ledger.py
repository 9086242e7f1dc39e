"""The operations on the money and their answers. Pure: what moves is decided in SQL
(store/migrations), in one transaction with what it depends on. Refusals: see refusals.py.

There are tens of thousands of these a second: a `Struct` is made in a fraction of the time that a
frozen dataclass takes, and the collector need not look at it, as none can be part of a cycle.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

AMOUNT_NANO_USD_MAX = 10**15
"""A million USD for one attempt: more is the caller's fault, and sums stay far from int64's end."""
TOKENS_MAX = 10**12
TTL_MS_MAX = 86_400_000
ID_HORIZON_MS = 7 * 86_400_000
"""An id is remembered for at least this long, then refused as too old (LEDGER, I3)."""

Pool = Literal["local", "paid", "cache"]


class Reserve(msgspec.Struct, frozen=True, gc=False):
    """Holds `amount_nano_usd` on the whole path of a key for `ttl_ms`."""

    reservation_id: str
    id_unix_ms: int
    request_id: str
    attempt: int
    key_id: int
    pool: Pool
    provider: str
    model: str
    amount_nano_usd: int
    tokens: int
    ttl_ms: int
    end_user: str
    tags: Mapping[str, str]


class Extend(msgspec.Struct, frozen=True, gc=False):
    """Makes a hold as large as this in all, and lets it live for `ttl_ms` from now."""

    reservation_id: str
    id_unix_ms: int
    amount_nano_usd: int
    tokens: int
    ttl_ms: int
    key_id: int | None = None
    """The key that reserved; None: whoever asks is not of a key, and may."""


class Settle(msgspec.Struct, frozen=True, gc=False):
    """Posts what an attempt used; token counts are as the upstream reported them."""

    reservation_id: str
    id_unix_ms: int
    amount_nano_usd: int
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    estimated: bool
    outcome: str
    trace_id: str
    key_id: int | None = None
    """See `Extend`."""


class Void(msgspec.Struct, frozen=True, gc=False):
    """Gives a hold back."""

    reservation_id: str
    id_unix_ms: int
    outcome: str
    key_id: int | None = None
    """See `Extend`."""


Operation = Reserve | Extend | Settle | Void


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What was done to the reservation. `remaining_nano_usd` None: every budget is unlimited."""

    amount_nano_usd: int
    expires_at: datetime | None
    remaining_nano_usd: int | None
    posted_nano_usd: int
    released_nano_usd: int
    overage: bool
    late: bool
