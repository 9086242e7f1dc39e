"""Usage for operators."""

from penstock.quota import admin_wire
from penstock.quota.admin.shapes import optional_account
from penstock.quota.checks import Faults
from penstock.quota.store.report_store import ReportStore
from penstock.quota.v1 import admin_pb2


class ReportsAdmin:
    """Checks what an operator asks of usage, and answers it."""

    def __init__(self, reports: ReportStore) -> None:
        self._reports = reports

    async def usage(self, request: admin_pb2.GetUsageRequest) -> admin_pb2.GetUsageResponse:
        faults = Faults()
        since = faults.instant("since", request.since) if request.HasField("since") else None
        until = faults.instant("until", request.until) if request.HasField("until") else None
        if since is not None and until is not None and until <= since:
            faults.add("until", "UNTIL_BEFORE_SINCE", "does not lie after since")
        faults.check()
        account = optional_account(request.account_id)
        rows = await self._reports.usage(since=since, until=until, account=account)
        answer = admin_pb2.GetUsageResponse(rows=[admin_wire.usage_row(row) for row in rows])
        gone = await self._reports.detached(since, until)
        if gone is not None:
            answer.detached.CopyFrom(admin_wire.detached(gone))
        return answer
