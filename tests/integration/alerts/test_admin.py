"""What operators ask: ListAlerts and TestAlerts."""

import json
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from penstock.core.errors import InvalidRequest
from penstock.core.telemetry import Telemetry
from penstock.quota.alerts.admin import AlertsAdmin
from penstock.quota.alerts.alert_store import AlertStore
from penstock.quota.alerts.config import Webhook
from penstock.quota.alerts.post import Poster
from penstock.quota.v1 import admin_pb2
from support.alerts import SECRET, Books, webhook
from support.webhook_receiver import receiver


def _admin(books: Books, *webhooks: Webhook, telemetry: Telemetry | None = None) -> AlertsAdmin:
    poster = Poster((SECRET,), books.clock)
    return AlertsAdmin(AlertStore(books.database), poster, books.clock, webhooks, telemetry)


async def _ids(admin: AlertsAdmin, **fields: Any) -> tuple[list[str], str]:
    answer = await admin.list_alerts(admin_pb2.ListAlertsRequest(**fields))
    return [alert.id for alert in answer.alerts], answer.next_page_token


async def test_alerts_are_listed_newest_first_in_pages(books: Books) -> None:
    _, _, key = await books.path()
    ids = [f"alert_{await books.overage(key)}" for _ in range(5)]
    ids.reverse()
    admin = _admin(books)
    first, token = await _ids(admin, page_size=2)
    second, token = await _ids(admin, page_size=2, page_token=token)
    third, end = await _ids(admin, page_size=2, page_token=token)
    assert (ids, "") == ([*first, *second, *third], end)


async def test_an_account_s_alerts_are_those_below_it_too(books: Books) -> None:
    org, team, key = await books.path()
    other = await books.account("org", "other")
    of_key, of_org, of_other = [
        f"alert_{await books.overage(account)}" for account in (key, org, other)
    ]
    admin = _admin(books)
    assert ([of_org, of_key], "") == await _ids(admin, account_id=f"org_{org}")
    assert ([of_key], "") == await _ids(admin, account_id=f"team_{team}")
    assert ([of_other], "") == await _ids(admin, account_id=f"org_{other}")
    assert ([], "") == await _ids(admin, kind="drift")
    assert 3 == len((await _ids(admin, kind="overage"))[0])


async def test_a_listed_alert_tells_who_took_it_and_why_others_did_not(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as good, receiver(500) as bad:
        alerts = books.alerts(webhook(good), webhook(bad))
        await books.overage(key)
        await alerts.route()
        for to in (good, bad):
            await alerts.deliver(webhook(to))
        (alert,) = (await _admin(books).list_alerts(admin_pb2.ListAlertsRequest())).alerts
        assert (1, 2, f"127.0.0.1:{bad.port}: it answered HTTP 500") == (
            alert.delivered, alert.deliveries, alert.last_error,
        )  # fmt: skip
        assert (f"key_{key}", "overage", 12) == (
            alert.account_id, alert.kind, json.loads(alert.detail_json)["posted_nano_usd"],
        )  # fmt: skip
        assert alert.message.startswith("Key acme/search/ci was charged")
        assert books.now == alert.at.ToDatetime(books.now.tzinfo)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "nonsense"}, "KIND_INVALID"),
        ({"account_id": "acme"}, "ACCOUNT_ID_INVALID"),
        ({"page_size": -1}, "PAGE_SIZE_INVALID"),
        ({"page_size": 1001}, "PAGE_SIZE_INVALID"),
        ({"page_token": "x"}, "PAGE_TOKEN_INVALID"),
    ],
)
async def test_bad_questions_are_refused(books: Books, fields: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await _ids(_admin(books), **fields)
    assert reason == refused.value.reason


async def test_a_test_reaches_every_webhook_and_tells_how_each_answered(books: Books) -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry("quota", exporter)
    async with receiver() as good, receiver(404) as bad:
        admin = _admin(books, webhook(good), webhook(bad, "slack"), telemetry=telemetry)
        answer = await admin.test_alerts(admin_pb2.TestAlertsRequest())
        assert [
            (f"127.0.0.1:{good.port}", "generic", 204, ""),
            (f"127.0.0.1:{bad.port}", "slack", 404, "it answered HTTP 404"),
        ] == [(d.host, d.shape, d.status, d.error) for d in answer.deliveries]
        assert "alert.test" == good.received[0].json["type"]
        assert good.received[0].is_signed_by(SECRET)
    telemetry.flush()
    assert ["penstock.alert"] == [span.name for span in exporter.get_finished_spans()]
    telemetry.shutdown()
    assert 0 == await books.value("SELECT count(*) FROM alerts")


async def test_a_dry_run_of_a_test_tells_what_would_go_where_and_sends_nothing(
    books: Books,
) -> None:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry("quota", exporter)
    async with receiver() as generic, receiver() as slack:
        admin = _admin(books, webhook(generic), webhook(slack, "slack"), telemetry=telemetry)
        request = admin_pb2.TestAlertsRequest()
        tried = await admin.test_alerts(request, dry_run=True)
        assert ([], []) == (generic.received, slack.received)
        telemetry.flush()
        assert () == exporter.get_finished_spans()

        await admin.test_alerts(request)

        # The clock stands still: it is what was sent, byte for byte.
        sent = [to.received[0].body.decode() for to in (generic, slack)]
        assert [
            (f"127.0.0.1:{to.port}", shape, 0, "not sent: this is a dry run", 0.0, body)
            for to, shape, body in zip((generic, slack), ("generic", "slack"), sent, strict=True)
        ] == [(d.host, d.shape, d.status, d.error, d.seconds, d.body) for d in tried.deliveries]
    telemetry.shutdown()
    assert 0 == await books.value("SELECT count(*) FROM alerts")
