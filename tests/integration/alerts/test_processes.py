"""Several real processes over one database; one of them is killed."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from support.alerts import SECRET, Books, webhook
from support.wait import until
from support.webhook_receiver import HANG, Receiver, receiver

TESTS = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def process(books: Books, *receivers: Receiver) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "services")]),
        "PENSTOCK_ALERTS_WEBHOOKS": ",".join(to.url for to in receivers),
        "PENSTOCK_ALERTS_SECRET": SECRET.decode().replace(" ", "-"),
    }
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.alerts_process", books.dsn,
        env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running
    finally:
        if running.returncode is None:
            running.terminate()
        await asyncio.wait_for(running.communicate(), 30)


async def _pending(books: Books) -> int:
    count: int = await books.value(
        "SELECT (SELECT count(*) FROM alerts WHERE routed_at IS NULL)"
        " + (SELECT count(*) FROM alert_deliveries WHERE next_try_at IS NOT NULL)"
    )
    return count


async def _none_pending(books: Books) -> bool:
    return await _pending(books) == 0


async def test_two_processes_race_and_deliver_each_alert_once(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as one, receiver() as two:
        async with process(books, one, two), process(books, one, two):
            for _ in range(60):
                await books.overage(key)
            await until(lambda: _none_pending(books), 30)
        for to in (one, two):
            assert (60, 60) == (len(to.ids), len(set(to.ids)))
            assert all(got.is_signed_by(SECRET.replace(b" ", b"-")) for got in to.received)


async def test_a_killed_deliverer_s_alert_is_taken_over_with_the_same_id(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver(HANG) as to:
        async with process(books, to) as doomed:
            await books.overage(key)
            await to.until(1)
            doomed.kill()
            await doomed.wait()
        async with process(books, to) as heir:
            await books.advance(timedelta(minutes=1))
            await to.until(2)
            await until(lambda: _none_pending(books))
            assert heir.returncode is None
        assert 1 == len(set(to.ids))


async def test_a_restart_sends_nothing_twice(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as to:
        for _ in range(3):
            await books.overage(key)
            async with process(books, to):
                await until(lambda: _none_pending(books), 30)
            await books.advance(timedelta(hours=5))
        assert (3, 3) == (len(to.ids), len(set(to.ids)))


async def test_a_stop_waits_for_the_answer_of_what_is_being_sent(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver() as to:
        to.gate = asyncio.Event()
        alerts = books.alerts(webhook(to))
        await books.overage(key)
        await alerts.route()
        alerts.start()
        await to.until(1)
        stop = asyncio.create_task(alerts.stop())
        assert not (await asyncio.wait([stop], timeout=0.1))[0]
        to.gate.set()
        await stop
        await alerts.aclose()
        assert (0, 1) == (await _pending(books), len(to.ids))


async def test_a_process_ends_in_order_within_moments(books: Books) -> None:
    async with receiver() as to, process(books, to) as stopping:
        _, _, key = await books.path()
        await books.overage(key)
        await to.until(1)
        stopping.terminate()
        assert 0 == await asyncio.wait_for(stopping.wait(), 10)


async def test_neither_log_nor_database_holds_the_address_or_the_secret(books: Books) -> None:
    _, _, key = await books.path()
    async with receiver(500) as to:
        async with process(books, to) as running:
            await books.overage(key)
            await to.until(1)
            await until(
                lambda: books.value("SELECT bool_or(last_status = 500) FROM alert_deliveries")
            )
            running.terminate()
            _, log = await running.communicate()
        kept = await books.value("SELECT string_agg(d::text, ' ') FROM alert_deliveries AS d")
        assert f"127.0.0.1:{to.port}".encode() in log
        for text in (log, kept.encode()):
            assert b"secret-path" not in text
            assert SECRET.replace(b" ", b"-") not in text
