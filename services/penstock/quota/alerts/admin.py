"""AdminService's ListAlerts and TestAlerts."""

import asyncio
import uuid
from datetime import UTC, datetime

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.core.clock import Clock
from penstock.core.money import INT64_MAX
from penstock.core.telemetry import Telemetry
from penstock.quota.alerts import event, shapes
from penstock.quota.alerts.alert import KINDS, Alert, Listed
from penstock.quota.alerts.alert_store import AlertStore
from penstock.quota.alerts.config import Webhook
from penstock.quota.alerts.post import Poster
from penstock.quota.alerts.text import message
from penstock.quota.checks import Faults
from penstock.quota.v1 import admin_pb2

ALERTS_PAGE_DEFAULT = 100
ALERTS_PAGE_MAX = 1_000
DRY_RUN = "not sent: this is a dry run"


class AlertsAdmin:
    """What operators ask of alerts."""

    def __init__(
        self,
        store: AlertStore,
        poster: Poster,
        clock: Clock,
        webhooks: tuple[Webhook, ...],
        telemetry: Telemetry | None = None,
    ) -> None:
        self._store = store
        self._poster = poster
        self._clock = clock
        self._webhooks = webhooks
        self._telemetry = telemetry

    async def list_alerts(
        self, request: admin_pb2.ListAlertsRequest
    ) -> admin_pb2.ListAlertsResponse:
        """Newest first; of an organisation or a team: with all that is below it.

        Raises:
            InvalidRequest: KIND_INVALID, ACCOUNT_ID_INVALID, PAGE_SIZE_INVALID, PAGE_TOKEN_INVALID.
        """
        faults = Faults()
        if request.kind and request.kind not in KINDS:
            faults.add("kind", "KIND_INVALID", f"takes one of {', '.join(KINDS)}")
        account_id = None
        if request.account_id:
            account_id = faults.account(
                "account_id", request.account_id, "org", "team", "key", "pool"
            )
        size = request.page_size or ALERTS_PAGE_DEFAULT
        faults.integer("page_size", size, low=1, high=ALERTS_PAGE_MAX)
        before_id = None
        if request.page_token:
            if request.page_token.isascii() and request.page_token.isdigit():
                before_id = min(int(request.page_token[:19]), INT64_MAX)
            else:
                faults.add("page_token", "PAGE_TOKEN_INVALID", "takes the last answer's token")
        faults.check()
        rows = await self._store.list_alerts(
            kind=request.kind or None,
            account_id=account_id,
            before_id=before_id,
            rows_max=size + 1,
        )
        shown = rows[:size]
        return admin_pb2.ListAlertsResponse(
            alerts=[_listed(row) for row in shown],
            next_page_token=str(shown[-1].alert.id) if len(rows) > size else "",
        )

    async def test_alerts(
        self, request: admin_pb2.TestAlertsRequest, *, dry_run: bool = False
    ) -> admin_pb2.TestAlertsResponse:
        """Sends a test to every webhook at once, one try each, and emits its event. A dry run only
        tells what would go where.

        It is no fact of the ledger, so it is not kept.
        """
        del request
        at = datetime.fromtimestamp(self._clock.unix_seconds(), UTC)
        alert = Alert(0, "test", at, "", "", {})
        if dry_run:
            return admin_pb2.TestAlertsResponse(
                deliveries=[_unsent(alert, webhook) for webhook in self._webhooks],
                example_body="" if self._webhooks else shapes.body(alert, "generic").decode(),
            )
        event.tell(alert, self._telemetry)
        answers = await asyncio.gather(
            *(self._poster.post(alert, webhook, uuid.uuid4().hex) for webhook in self._webhooks)
        )
        return admin_pb2.TestAlertsResponse(
            deliveries=[
                admin_pb2.Delivery(
                    host=webhook.host,
                    shape=webhook.shape,
                    status=answer.status,
                    error=answer.error,
                    seconds=answer.seconds,
                )
                for webhook, answer in zip(self._webhooks, answers, strict=True)
            ]
        )


def _unsent(alert: Alert, webhook: Webhook) -> admin_pb2.Delivery:
    return admin_pb2.Delivery(
        host=webhook.host,
        shape=webhook.shape,
        error=DRY_RUN,
        body=shapes.body(alert, webhook.shape).decode(),
    )


def _listed(row: Listed) -> admin_pb2.Alert:
    at = Timestamp()
    at.FromDatetime(row.alert.at)
    return admin_pb2.Alert(
        id=row.alert.ref,
        kind=row.alert.kind,
        at=at,
        account_id=row.alert.account_id,
        message=message(row.alert),
        detail_json=msgspec.json.encode(row.alert.detail).decode(),
        delivered=row.delivered,
        deliveries=row.deliveries,
        last_error=row.last_error,
    )
