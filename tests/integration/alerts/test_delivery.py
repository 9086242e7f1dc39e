"""From a row of `alerts` to a receiver: real PostgreSQL, real HTTP."""

import asyncio
from datetime import timedelta

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from penstock.core.errors import Unavailable
from penstock.core.telemetry import Telemetry
from penstock.quota.alerts.alert import Answer, Claim
from penstock.quota.alerts.alert_store import LEASE_SECONDS, AlertStore
from penstock.quota.alerts.backoff import TRIES_MAX
from support.alerts import SECRET, Books, webhook
from support.webhook_receiver import HANG, receiver

LATER = timedelta(hours=5)
"""Longer than any delay."""


async def test_an_alert_is_delivered_signed_with_names_and_numbers(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as to:
        alerts = books.alerts(webhook(to))
        await books.overage(key)
        await alerts.route()
        await alerts.deliver(webhook(to))
        (got,) = to.received
        assert got.is_signed_by(SECRET)
        assert not got.is_signed_by(SECRET + b"!")
        assert str(int(books.clock.now)) == got.headers["webhook-timestamp"]
        data = got.json["data"]
        assert ("alert.overage", f"key_{key}", "key acme/search/ci", 12) == (
            got.json["type"],
            data["account_id"],
            data["account"],
            data["detail"]["posted_nano_usd"],
        )
        assert data["message"].startswith("Key acme/search/ci was charged 0.000000012 USD")


async def test_what_was_delivered_is_not_sent_again(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as to:
        alerts = books.alerts(webhook(to))
        await books.overage(key)
        for _ in range(3):
            await alerts.route()
            await alerts.deliver(webhook(to))
            await books.advance(LATER)
        assert 1 == len(to.received)


async def test_every_webhook_gets_it_and_a_broken_one_holds_up_no_other(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as good, receiver(500, 500) as bad:
        alerts = books.alerts(webhook(bad), webhook(good, "slack"))
        await books.overage(key)
        await alerts.route()
        await alerts.deliver(webhook(bad))
        await alerts.deliver(webhook(good, "slack"))
        assert (1, 1) == (len(good.received), len(bad.received))
        assert ["text"] == list(good.received[0].json)


async def test_it_is_tried_again_after_a_500_with_the_same_id_and_a_new_time(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver(500, 503) as to:
        alerts = books.alerts(webhook(to))
        await books.overage(key)
        await alerts.route()
        for seconds in (0, 4, 1, 19, 1):
            await books.advance(timedelta(seconds=seconds))
            books.clock.now += seconds
            await alerts.deliver(webhook(to))
        # At 0 s, 5 s and 25 s; not at 4 s, nor at 24 s.
        assert 3 == len(to.received)
        assert 1 == len(set(to.ids))
        assert [0, 5, 25] == [
            int(one.headers["webhook-timestamp"]) - int(books.clock.now) + 25 for one in to.received
        ]
        assert all(one.is_signed_by(SECRET) for one in to.received)


async def test_it_is_tried_again_after_a_time_out(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver(HANG) as to:
        alerts = books.alerts(webhook(to), post_seconds=0.2)
        await books.overage(key)
        await alerts.route()
        await alerts.deliver(webhook(to))
        await books.advance(timedelta(seconds=5))
        await alerts.deliver(webhook(to))
        assert 2 == len(to.received)
        (listed,) = await AlertStore(books.database).list_alerts(
            kind=None, account_id=None, before_id=None, rows_max=10
        )
        assert (1, 1, "") == (listed.delivered, listed.deliveries, listed.last_error)


async def test_a_receiver_s_wish_to_wait_is_heard(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver(429) as to:
        to.extra_head = "retry-after: 600\r\n"
        alerts = books.alerts(webhook(to))
        await books.overage(key)
        await alerts.route()
        await alerts.deliver(webhook(to))
        await books.advance(timedelta(seconds=599))
        await alerts.deliver(webhook(to))
        assert 1 == len(to.received)
        await books.advance(timedelta(seconds=1))
        await alerts.deliver(webhook(to))
        assert 2 == len(to.received)


async def test_a_redirect_is_a_failure_and_not_followed(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as elsewhere, receiver(307) as to:
        to.extra_head = f"location: {elsewhere.url}\r\n"
        alerts = books.alerts(webhook(to))
        await books.overage(key)
        await alerts.route()
        await alerts.deliver(webhook(to))
        assert (1, 0) == (len(to.received), len(elsewhere.received))
        assert "it answered HTTP 307" == await books.value(
            "SELECT last_error FROM alert_deliveries WHERE next_try_at IS NOT NULL"
        )


async def test_it_is_given_up_after_its_tries_and_told_as_such(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver(*[500] * 99) as to:
        alerts = books.alerts(webhook(to))
        await books.overage(key)
        await alerts.route()
        for _ in range(TRIES_MAX + 3):
            await alerts.deliver(webhook(to))
            await books.advance(LATER)
        assert TRIES_MAX == len(to.received)
        (row,) = await books.fetch("SELECT * FROM alert_deliveries")
        assert (None, None, 500) == (row["next_try_at"], row["delivered_at"], row["last_status"])
        assert row["given_up_at"] is not None


async def test_a_receiver_that_is_gone_is_left_alone(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver(410) as to:
        alerts = books.alerts(webhook(to))
        await books.overage(key)
        await alerts.route()
        await alerts.deliver(webhook(to))
        await books.advance(LATER)
        await alerts.deliver(webhook(to))
        assert 1 == len(to.received)
        assert await books.value("SELECT given_up_at IS NOT NULL FROM alert_deliveries")


async def test_two_in_one_process_race_and_each_receiver_gets_each_alert_once(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as one, receiver() as two:
        webhooks = webhook(one), webhook(two)
        racers = [books.alerts(*webhooks) for _ in range(4)]
        for _ in range(30):
            await books.overage(key)

        async def run(racer: object) -> None:
            for _ in range(8):
                await racer.route()  # type: ignore[attr-defined]
                await asyncio.gather(*(racer.deliver(w) for w in webhooks))  # type: ignore[attr-defined]

        await asyncio.gather(*(run(racer) for racer in racers))
        for to in (one, two):
            assert (30, 30) == (len(to.ids), len(set(to.ids)))


async def test_who_lost_its_claim_cannot_say_how_it_ended(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as to:
        store = AlertStore(books.database)
        await books.overage(key)
        await store.route([webhook(to)])
        (first,) = await store.claim(webhook(to))
        assert [] == await store.claim(webhook(to))
        await books.advance(timedelta(seconds=LEASE_SECONDS))
        (second,) = await store.claim(webhook(to))
        assert (1, 2, first.message_id) == (first.tries, second.tries, second.message_id)
        assert not await store.finish(first, Answer(500, "late", 0.0), 5_000)
        assert await store.finish(second, Answer(204, "", 0.0), None)
        assert not await store.finish(second, Answer(204, "", 0.0), None)


async def test_without_webhooks_an_alert_is_still_an_event_once(books: Books) -> None:
    _, _, key = await books.path()
    await books.overage(key)
    exporter = InMemorySpanExporter()
    telemetry = Telemetry("quota", exporter)
    for _ in range(2):
        await books.alerts(telemetry=telemetry).route()
    telemetry.flush()
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert "penstock.alert" == event.name
    assert "overage" == event.attributes["penstock.alert.kind"]
    assert "Key acme/search/ci" in str(event.attributes["penstock.alert.message"])
    telemetry.shutdown()


async def test_a_database_that_is_away_after_the_post_is_waited_for_not_sent_again(
    books: Books,
) -> None:
    class Flaky(AlertStore):
        failures = 2

        async def finish(self, claim: Claim, answer: Answer, delay_ms: int | None) -> bool:
            if self.failures:
                self.failures -= 1
                raise Unavailable("away", reason="LEDGER_UNAVAILABLE")
            return await super().finish(claim, answer, delay_ms)

    _, _, key = await books.path()
    async with receiver() as to:
        alerts = books.alerts(webhook(to))
        alerts._store = Flaky(books.database)
        await books.overage(key)
        await alerts.route()
        await alerts.deliver(webhook(to))
        await books.advance(LATER)
        await alerts.deliver(webhook(to))
        assert 1 == len(to.received)
