"""An answer from the cache costs nothing, and counts as a request where requests are limited."""

from collections.abc import Callable

from penstock.cache.v1.cache_pb2 import LookupResponse
from penstock.core import ids
from penstock.core.errors import Unavailable
from penstock.core.telemetry_request import RequestTrace
from penstock.quota.v1.quota_pb2 import POOL_KIND_CACHE, ReserveRequest
from penstock.router.hold import ttl_ms_of
from penstock.router.ports import Ledger
from penstock.router.receipt import CACHE
from penstock.router.request import Request


async def count_hit(
    ledger: Ledger,
    request: Request,
    found: LookupResponse,
    trace: RequestTrace,
    failed_open: Callable[[], None],
) -> None:
    """Counts the hit against the limits in requests on the key's path, if there are any.

    Raises:
        RateLimited: one of them is full.
        Unavailable: LEDGER_UNAVAILABLE, for a key that may not go on while the ledger is away.
    """
    if not request.principal.counts_requests:
        return
    hit = ReserveRequest(
        reservation_id=ids.uuid7(),
        request_id=request.request_id,
        attempt=1,
        key_id=request.principal.key_id,
        pool=POOL_KIND_CACHE,
        provider=CACHE,
        model=found.answer.model,
        ttl_ms=ttl_ms_of(request),
        user=request.user,
        tags=request.tags,
    )
    with trace.child("quota count") as span:
        try:
            await ledger.reserve(hit, request.deadline, span.traceparent)
        except Unavailable:
            if not request.principal.fail_open_local:
                raise
            failed_open()
