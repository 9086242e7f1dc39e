"""Whose request it is: from an API key to its Principal, by a cache that costs a known key no RPC.

An entry is believed while the watch on changed keys is alive, and else for two seconds after it
was asked for: so a revoked key is refused within two seconds everywhere, whatever breaks. The key's
text stays in this file.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc

from penstock.core.channel import Metadata
from penstock.core.clock import Clock
from penstock.core.errors import (
    NotFound,
    PenstockError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from penstock.core.ids import API_KEY_PREFIX
from penstock.core.status import from_rpc_error
from penstock.quota.v1.quota_pb2 import (
    GetPrincipalRequest,
    Principal,
    WatchKeysRequest,
    WatchKeysResponse,
)
from penstock.quota.v1.quota_pb2_grpc import QuotaServiceStub

logger = logging.getLogger(__name__)

KEY_CHARACTERS_MAX = 256
"""Ours have about 50; longer text is no key and is not hashed."""

BELIEVED_SECONDS = 2.0
"""Without a sign of life from the watch; the promise on revoked keys."""

UNKNOWN_BELIEVED_SECONDS = 1.0
"""A key may have been made a moment ago; short enough not to be noticed."""

FAIL_OPEN_SECONDS_MAX = 3_600.0
"""How long a fail-open key is taken at its old word while the ledger is away."""

PRINCIPALS_MAX = 65_536
UNKNOWN_MAX = 16_384
"""Random keys of a scanner push each other out, never a known key."""

ASK_TIMEOUT_SECONDS = 2.0
ASKS_IN_FLIGHT_MAX = 64
"""Unknown keys are the one thing a stranger can make us ask about."""

AWAY_SECONDS = 0.5
"""After a failed question the ledger is not asked again for so long about keys that may go on."""

WATCH_RETRY_SECONDS = 0.25


def key_of(headers: Mapping[str, str]) -> str:
    """The API key of a call, from `authorization: Bearer …` or `x-api-key` (names in lower case).

    Raises:
        Unauthenticated: KEY_MISSING, KEY_UNKNOWN where it cannot be one of ours.
    """
    authorization = headers.get("authorization", "")
    scheme, _, rest = authorization.partition(" ")
    key = rest.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
    if not key:
        raise Unauthenticated(
            "authorization: no API key was sent; send `Authorization: Bearer ps-…` or `x-api-key`",
            reason="KEY_MISSING",
        )
    if not key.startswith(API_KEY_PREFIX) or not key.isascii() or len(key) > KEY_CHARACTERS_MAX:
        raise _unknown()
    return key


def _unknown() -> Unauthenticated:
    return Unauthenticated(
        "authorization: this API key is not known; keys begin with ps- and are made by "
        "`penstock keys create`",
        reason="KEY_UNKNOWN",
    )


@dataclass(slots=True)
class _Entry:
    principal: Principal
    asked_at: float
    """Monotonic seconds, from before the question."""
    epoch: int
    """The watch that was alive when it was asked for."""


class _Asking:
    """One question under way, shared by all who wait for its answer."""

    def __init__(self) -> None:
        self.changed = False
        """The key changed meanwhile: the answer may be from before."""
        self.task: asyncio.Task[Principal] | None = None


class Principals:
    """The keys that this router knows."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata, clock: Clock) -> None:
        self._stub = QuotaServiceStub(channel)
        self._metadata = tuple(metadata)
        self._clock = clock
        self._known: OrderedDict[bytes, _Entry] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._asking: dict[bytes, _Asking] = {}
        self._asks = asyncio.Semaphore(ASKS_IN_FLIGHT_MAX)
        self._epoch = 0
        self._heard_at = float("-inf")
        self._away_until = float("-inf")
        self.heard = asyncio.Event()
        """Set once the watch has spoken: the quota service is there."""

    async def of(self, headers: Mapping[str, str]) -> Principal:
        """The active principal of a call.

        Raises:
            Unauthenticated: KEY_MISSING, KEY_UNKNOWN, KEY_REVOKED, KEY_EXPIRED.
            PermissionDenied: ACCOUNT_SUSPENDED.
            Unavailable: LEDGER_UNAVAILABLE, where the key is not known and cannot be asked about.
        """
        digest = hashlib.sha256(key_of(headers).encode()).digest()
        entry = self._known.get(digest)
        if entry is not None and self._believes(entry):
            self._known.move_to_end(digest)
            principal = entry.principal
        else:
            principal = await self._asked(digest, entry)
        return self._active(principal)

    def _believes(self, entry: _Entry) -> bool:
        good_at = entry.asked_at
        if entry.epoch == self._epoch:
            good_at = max(good_at, self._heard_at)
        return self._clock.monotonic_seconds() - good_at < BELIEVED_SECONDS

    def _active(self, principal: Principal) -> Principal:
        state = principal.state
        expired = principal.HasField("expires_at") and (
            principal.expires_at.seconds + principal.expires_at.nanos / 1e9
            <= self._clock.unix_seconds()
        )
        if state == Principal.STATE_ACTIVE and not expired:
            return principal
        facts = {"key_id": principal.key_id}
        if state == Principal.STATE_REVOKED:
            raise Unauthenticated(
                "authorization: this API key was revoked; use another key",
                reason="KEY_REVOKED",
                metadata=facts,
            )
        if state == Principal.STATE_SUSPENDED:
            raise PermissionDenied(
                "authorization: this API key belongs to a suspended account; ask its operator",
                reason="ACCOUNT_SUSPENDED",
                metadata=facts,
            )
        if expired or state == Principal.STATE_EXPIRED:
            if principal.HasField("expires_at"):
                facts["expired_at"] = principal.expires_at.ToJsonString()
            raise Unauthenticated(
                "authorization: this API key has expired; ask for a new one",
                reason="KEY_EXPIRED",
                metadata=facts,
            )
        raise _unknown()

    async def _asked(self, digest: bytes, entry: _Entry | None) -> Principal:
        now = self._clock.monotonic_seconds()
        if self._unknown.get(digest, float("-inf")) > now:
            raise _unknown()
        if entry is not None and now < self._away_until and self._fails_open(entry):
            return entry.principal
        try:
            return await asyncio.shield(self._question(digest))
        except NotFound:
            raise _unknown() from None
        except Unavailable as error:
            self._away_until = self._clock.monotonic_seconds() + AWAY_SECONDS
            if entry is not None and self._fails_open(entry):
                return entry.principal
            raise error from None

    def _fails_open(self, entry: _Entry) -> bool:
        age = self._clock.monotonic_seconds() - entry.asked_at
        return entry.principal.fail_open_local and age < FAIL_OPEN_SECONDS_MAX

    def _question(self, digest: bytes) -> asyncio.Task[Principal]:
        asking = self._asking.get(digest)
        if asking is None:
            asking = _Asking()
            asking.task = asyncio.create_task(self._ask(digest, asking))
            # Read here too, so that a failure nobody waits for any more is no warning.
            asking.task.add_done_callback(lambda t: t.cancelled() or t.exception())
            self._asking[digest] = asking
        assert asking.task is not None
        return asking.task

    async def _ask(self, digest: bytes, asking: _Asking) -> Principal:
        try:
            while True:
                asking.changed = False
                asked_at, epoch = self._clock.monotonic_seconds(), self._epoch
                principal = await self._get(digest)
                if not asking.changed:
                    break
        except NotFound:
            self._known.pop(digest, None)
            self._unknown[digest] = self._clock.monotonic_seconds() + UNKNOWN_BELIEVED_SECONDS
            _bound(self._unknown, UNKNOWN_MAX)
            raise
        finally:
            del self._asking[digest]
        self._known[digest] = _Entry(principal, asked_at, epoch)
        self._known.move_to_end(digest)
        _bound(self._known, PRINCIPALS_MAX)
        return principal

    async def _get(self, digest: bytes) -> Principal:
        try:
            async with self._asks:
                return await self._stub.GetPrincipal(
                    GetPrincipalRequest(key_hash=digest),
                    timeout=ASK_TIMEOUT_SECONDS,
                    metadata=self._metadata,
                )
        except grpc.aio.AioRpcError as error:
            told = from_rpc_error(error)
            if isinstance(told, NotFound):
                raise told from None
            logger.warning("the quota service does not tell who a key is: %s", told.message)
            raise Unavailable(
                "the ledger cannot be asked who this key is; try again",
                reason="LEDGER_UNAVAILABLE",
                retry_after_seconds=1,
            ) from None

    async def watch(self) -> None:
        """Runs for ever: forgets keys as they change, by the quota service's word."""
        while True:
            try:
                await self._watch_once()
            except grpc.aio.AioRpcError as error:
                told: PenstockError = from_rpc_error(error)
                logger.warning("the watch on keys broke: %s; trying again", told.message)
            await asyncio.sleep(WATCH_RETRY_SECONDS)

    async def _watch_once(self) -> None:
        # A watch that is silent is as good as none: it must speak at least each second.
        call = self._stub.WatchKeys(WatchKeysRequest(), metadata=self._metadata)
        try:
            first = True
            while True:
                async with asyncio.timeout(BELIEVED_SECONDS * 2):
                    message = await call.read()
                if not isinstance(message, WatchKeysResponse):
                    return  # the end of the stream
                if first:
                    # What changed while nobody listened is not known: older ones are asked again.
                    self._epoch += 1
                    first = False
                    self.heard.set()
                self._forget(message.changed_key_hashes)
                self._heard_at = self._clock.monotonic_seconds()
        except TimeoutError:
            logger.warning("the watch on keys is silent; connecting again")
        finally:
            call.cancel()

    def _forget(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self._known.pop(digest, None)
            self._unknown.pop(digest, None)
            if asking := self._asking.get(digest):
                asking.changed = True


def _bound(kept: OrderedDict[bytes, _Entry] | OrderedDict[bytes, float], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
