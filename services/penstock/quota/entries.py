"""ListEntries, for routers and operators alike."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from penstock.core.money import INT64_MAX
from penstock.quota import admin_wire
from penstock.quota.admin.shapes import SCOPE_TAGS_MAX, any_account
from penstock.quota.checks import Faults
from penstock.quota.store.entry_store import EntryFilter, EntryStore
from penstock.quota.v1 import quota_pb2

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000
TEXT_LENGTH_MAX = 512
OPERATIONS = (
    "reserve",
    "extend",
    "settle",
    "void",
    "expire",
    "late_settle",
    "count",
    "adjust",
    "resolve",
    "grant",
    "lapse",
    "configure",
)


class Entries:
    """Checks a question and answers a page of it."""

    def __init__(self, entries: EntryStore) -> None:
        self._entries = entries

    async def list(self, request: quota_pb2.ListEntriesRequest) -> quota_pb2.ListEntriesResponse:
        """Newest first. Raises InvalidRequest with every fault, NotFound: the account."""
        faults = Faults()
        size = request.page_size or PAGE_SIZE_DEFAULT
        faults.integer("page_size", size, low=1, high=PAGE_SIZE_MAX)
        before_id = _before_id(faults, request.page_token)
        wanted = _filter(faults, request)
        faults.check()
        rows = await self._entries.entries(wanted, before_id=before_id, rows_max=size + 1)
        entries = [admin_wire.entry(row) for row in rows[:size]]
        more = str(entries[-1].id) if len(rows) > size else ""
        answer = quota_pb2.ListEntriesResponse(entries=entries, next_page_token=more)
        if not more:
            gone = await self._entries.detached(wanted.since, wanted.until)
            if gone is not None:
                answer.detached.CopyFrom(admin_wire.detached(gone))
        return answer


def _before_id(faults: Faults, token: str) -> int | None:
    if not token:
        return None
    if not (token.isascii() and token.isdigit()):
        faults.add("page_token", "PAGE_TOKEN_INVALID", "takes the last answer's token")
        return None
    return min(int(token[:19]), INT64_MAX)


def _filter(faults: Faults, request: quota_pb2.ListEntriesRequest) -> EntryFilter:
    if request.operation and request.operation not in OPERATIONS:
        faults.add("operation", "OPERATION_INVALID", f"takes one of {', '.join(OPERATIONS)}")
    if request.reservation_id:
        faults.uuid7("reservation_id", request.reservation_id)
    for field in ("request_id", "provider", "model", "user"):
        faults.text(field, getattr(request, field), length_max=TEXT_LENGTH_MAX)
    if len(request.tags) > SCOPE_TAGS_MAX:
        faults.add("tags", "TAGS_INVALID", f"takes at most {SCOPE_TAGS_MAX} tags")
    for name, value in request.tags.items():
        faults.text("tags", name, length_min=1, length_max=TEXT_LENGTH_MAX)
        faults.text("tags", value, length_max=TEXT_LENGTH_MAX)
    since = _instant(faults, "since", request.since if request.HasField("since") else None)
    until = _instant(faults, "until", request.until if request.HasField("until") else None)
    if since is not None and until is not None and until <= since:
        faults.add("until", "UNTIL_BEFORE_SINCE", "does not lie after since")
    account = None
    if request.account_id:
        account = any_account(faults, "account_id", request.account_id)
    return EntryFilter(
        request_id=request.request_id,
        key_id=faults.account("key_id", request.key_id, "key") if request.key_id else None,
        reservation_id=request.reservation_id,
        account=account,
        operation=request.operation,
        provider=request.provider,
        model=request.model,
        end_user=request.user,
        tags=dict(request.tags),
        since=since,
        until=until,
    )


def _instant(faults: Faults, field: str, value: Timestamp | None) -> datetime | None:
    return None if value is None else faults.instant(field, value)
