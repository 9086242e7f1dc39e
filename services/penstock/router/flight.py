"""A request's dealings with the cache: look up, wait for an identical request in flight or lead
one, store.
"""

from dataclasses import dataclass

from penstock.cache.v1.cache_pb2 import (
    AbandonRequest,
    Answer,
    LookupRequest,
    LookupResponse,
    StoreRequest,
)
from penstock.core.catalogue import Catalogue
from penstock.router.fingerprint import fingerprint, shareable
from penstock.router.policy import Route
from penstock.router.ports import Answers
from penstock.router.request import Request
from penstock.router.v1.router_pb2 import (
    CACHE_VERDICT_BYPASS,
    CACHE_VERDICT_MISS,
    CACHE_VERDICT_UNAVAILABLE,
    CacheVerdict,
)

WAIT_SHARE = 0.5
"""Of the deadline that a request waits for another's answer: the rest is left to make one itself.
"""

WAIT_MS_MAX = 600_000
"""The cache refuses a look-up that would wait longer, and a refusal would be a miss."""


@dataclass
class Looked:
    """What the look-up said, and what is still owed to those who wait for this request."""

    verdict: CacheVerdict.ValueType
    key: bytes = b""
    org_id: str = ""
    found: LookupResponse | None = None
    """Set where there is an answer."""
    flight_token: str = ""
    """Set while this request leads a flight that is not resolved."""
    keep: bool = False

    async def store(self, answers: Answers, answer: Answer | None, ttl_seconds: int) -> None:
        """Keeps a complete answer, and hands it to those who wait. None: it is not complete."""
        if answer is None or not (self.keep or self.flight_token):
            return
        token, self.flight_token = self.flight_token, ""
        await answers.store(
            StoreRequest(
                fingerprint=self.key,
                org_id=self.org_id,
                answer=answer,
                ttl_seconds=ttl_seconds,
                flight_token=token,
                no_store=not self.keep,
            )
        )

    async def abandon(self, answers: Answers) -> None:
        """The next waiter leads. Does nothing where no flight is led, or it was resolved."""
        if not self.flight_token:
            return
        token, self.flight_token = self.flight_token, ""
        await answers.abandon(
            AbandonRequest(fingerprint=self.key, org_id=self.org_id, flight_token=token)
        )


async def look_up(
    answers: Answers, request: Request, route: Route, catalogue: Catalogue, traceparent: str = ""
) -> Looked:
    """Asks the cache. Out of reach is a miss; never an error."""
    control = request.cache_control
    if not catalogue.cache.enabled or (control.no_cache and control.no_store):
        return Looked(CACHE_VERDICT_BYPASS)
    looked = Looked(
        CACHE_VERDICT_BYPASS if control.no_cache else CACHE_VERDICT_MISS,
        key=fingerprint(request, route.targets),
        org_id=request.principal.org_id,
        keep=not control.no_store,
    )
    ask = _question(request, looked.key, catalogue)
    if ask is None:
        return looked
    ask.join_flight = shareable(request.input) and not control.no_store
    wait_seconds = request.deadline.remaining_seconds() * WAIT_SHARE
    ask.wait_ms_max = min(WAIT_MS_MAX, int(wait_seconds * 1000))
    found = await answers.lookup(ask, request.deadline, traceparent)
    if found is None:
        looked.verdict = CACHE_VERDICT_UNAVAILABLE
    elif found.HasField("answer"):
        looked.found = found
    else:
        looked.flight_token = found.flight_token
    return looked


async def is_stored(answers: Answers, request: Request, route: Route, catalogue: Catalogue) -> bool:
    """Whether `look_up` would find an answer at once. Nothing is led or waited for."""
    ask = _question(request, fingerprint(request, route.targets), catalogue)
    found = await answers.lookup(ask, request.deadline) if ask else None
    return found is not None and found.HasField("answer")


def _question(request: Request, key: bytes, catalogue: Catalogue) -> LookupRequest | None:
    """What the cache is asked for an answer; None: it may not give one."""
    control = request.cache_control
    if not catalogue.cache.enabled or control.no_cache:
        return None
    ask = LookupRequest(fingerprint=key, org_id=request.principal.org_id)
    if control.HasField("max_age_seconds"):
        ask.max_age_seconds = control.max_age_seconds
    return ask
