"""The operations of the cache: proto to domain and back."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import UUID

from penstock.cache import answers
from penstock.cache.flights import Led, Waits
from penstock.cache.lookups import Look, Lookups
from penstock.cache.store.base import Flight, Found, Keep, Key, Store, Verdict
from penstock.cache.store.micro_batch import MicroBatch
from penstock.cache.v1.cache_pb2 import (
    AbandonRequest,
    AbandonResponse,
    LookupRequest,
    LookupResponse,
    StoreRequest,
    StoreResponse,
)
from penstock.core.clock import Clock
from penstock.core.errors import FieldViolation, InvalidRequest

FINGERPRINT_BYTES = 32
ORG_ID_CHARS_MAX = 256
"""Far more than our own ids have; a key of the store must not be a text of any length."""

WAIT_MS_MAX = 600_000
"""The contract's: the longest deadline that a request may have by default; routers ask for half."""

TTL_SECONDS_MAX = 31_536_000
"""A year: a longer life is a mistake."""

MAX_AGE_SECONDS_MAX = 10 * TTL_SECONDS_MAX
"""No entry is older; keeps the interval within what PostgreSQL can reckon with."""

_VERDICTS = {
    Verdict.MISS: LookupResponse.VERDICT_MISS,
    Verdict.HIT: LookupResponse.VERDICT_HIT,
    Verdict.SHARED: LookupResponse.VERDICT_SHARED,
    Verdict.LEAD: LookupResponse.VERDICT_LEAD,
    Verdict.WAIT_EXPIRED: LookupResponse.VERDICT_WAIT_EXPIRED,
}


class Operations:
    """`on_stored` is told the bytes of each new entry."""

    def __init__(
        self,
        store: Store,
        lookups: Lookups,
        led: Led,
        waits: Waits,
        clock: Clock,
        *,
        entry_bytes_max: int,
        on_stored: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._lookups = lookups
        self._led = led
        self._waits = waits
        self._clock = clock
        self._keeps: MicroBatch[Keep, None] = MicroBatch(self._keep)
        self._entry_bytes_max = entry_bytes_max
        self._on_stored = on_stored

    async def lookup(self, request: LookupRequest, on_wait: Callable[[], None]) -> LookupResponse:
        """Raises InvalidRequest, Unavailable. See `Lookups.look_up`."""
        _check(_lookup_faults(request))
        look = Look(
            Key(request.org_id, request.fingerprint),
            joins=request.join_flight,
            wait_ms_max=request.wait_ms_max,
            max_age_seconds=(
                min(request.max_age_seconds, MAX_AGE_SECONDS_MAX)
                if request.HasField("max_age_seconds")
                else None
            ),
        )
        return _response(await self._lookups.look_up(look, on_wait))

    async def store(self, request: StoreRequest) -> StoreResponse:
        """Raises InvalidRequest (the flight is then abandoned), Unavailable."""
        token = _check(_store_faults(request), request.flight_token)
        key = Key(request.org_id, request.fingerprint)
        faults = answers.faults(request.answer)
        if faults:
            if token is not None:
                await self._end(Flight(key, token))
            raise InvalidRequest.of(faults, reason="ANSWER_INCOMPLETE")
        answer = request.answer.SerializeToString()
        reason = answers.refusal(
            len(answer), no_store=request.no_store, entry_bytes_max=self._entry_bytes_max
        )
        if not reason or token is not None:
            keep = Keep(key, answer, not reason, request.ttl_seconds, token)
            if token is not None:
                # Not renewed from here on: should the store fail, the next waiter leads.
                self._led.remove(token)
            await self._keeps.submit(keep)
        if token is not None:
            now = datetime.fromtimestamp(self._clock.unix_seconds(), UTC)
            self._waits.end(token, Found(Verdict.SHARED, answer, now))
        if not reason:
            self._on_stored(len(answer))
        return StoreResponse(stored=not reason, reason=reason)

    async def abandon(self, request: AbandonRequest) -> AbandonResponse:
        """Raises InvalidRequest, Unavailable."""
        token = _check(_key_faults(request), request.flight_token)
        if token is None:
            raise InvalidRequest.of([FieldViolation("flight_token", "is empty")])
        await self._end(Flight(Key(request.org_id, request.fingerprint), token))
        return AbandonResponse()

    async def _keep(self, keeps: Sequence[Keep]) -> list[None]:
        await self._store.store(keeps)
        return [None] * len(keeps)

    async def _end(self, flight: Flight) -> None:
        self._led.remove(flight.token)
        await self._lookups.abandon(flight)


def _response(found: Found) -> LookupResponse:
    response = LookupResponse(verdict=_VERDICTS[found.verdict])
    if found.answer is not None:
        response.answer.ParseFromString(found.answer)
    if found.stored_at is not None:
        response.stored_at.FromDatetime(found.stored_at)
    if found.verdict is Verdict.LEAD:
        response.flight_token = str(found.token)
    return response


def _key_faults(request: LookupRequest | StoreRequest | AbandonRequest) -> list[FieldViolation]:
    faults = []
    if len(request.fingerprint) != FINGERPRINT_BYTES:
        faults.append(
            FieldViolation("fingerprint", f"must have {FINGERPRINT_BYTES} bytes, a SHA-256")
        )
    if not 1 <= len(request.org_id) <= ORG_ID_CHARS_MAX:
        faults.append(FieldViolation("org_id", f"must have 1 to {ORG_ID_CHARS_MAX} characters"))
    elif "\0" in request.org_id:
        faults.append(FieldViolation("org_id", "must not hold a NUL"))
    return faults


def _lookup_faults(request: LookupRequest) -> list[FieldViolation]:
    faults = _key_faults(request)
    if not 0 <= request.wait_ms_max <= WAIT_MS_MAX:
        faults.append(FieldViolation("wait_ms_max", f"must be 0 to {WAIT_MS_MAX}"))
    if request.max_age_seconds < 0:
        faults.append(FieldViolation("max_age_seconds", "must not be negative"))
    return faults


def _store_faults(request: StoreRequest) -> list[FieldViolation]:
    faults = _key_faults(request)
    if not (request.no_store or 1 <= request.ttl_seconds <= TTL_SECONDS_MAX):
        faults.append(FieldViolation("ttl_seconds", f"must be 1 to {TTL_SECONDS_MAX}"))
    return faults


def _check(faults: list[FieldViolation], flight_token: str = "") -> UUID | None:
    """The token, or None where none is given; raises InvalidRequest with all faults."""
    token = None
    if flight_token:
        try:
            token = UUID(flight_token)
        except ValueError:
            faults.append(FieldViolation("flight_token", "is no token that a lookup gave"))
    if faults:
        raise InvalidRequest.of(faults)
    return token
