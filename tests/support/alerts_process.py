"""Alerts alone, in a process of its own: `python -m support.alerts_process DSN`.

Reads the webhooks from the environment as the quota service does; ends in order on SIGTERM.
"""

import asyncio
import os
import random
import signal
import sys

from penstock.core import log
from penstock.core.clock import SystemClock
from penstock.quota.alerts.alert_store import AlertStore
from penstock.quota.alerts.config import read_alerts_config
from penstock.quota.alerts.evaluator import Evaluator
from penstock.quota.alerts.loop import Alerts
from penstock.quota.alerts.post import Poster
from penstock.quota.store.database import Database


async def main(dsn: str) -> None:
    config, faults = read_alerts_config(os.environ)
    assert not faults, faults
    clock = SystemClock()
    database = await Database.open(dsn)
    alerts = Alerts(
        AlertStore(database),
        Evaluator(database, suspense_age=config.suspense_age),
        Poster(config.secrets, clock),
        clock,
        config.webhooks,
        random.random,
        poll_seconds=0.02,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    alerts.start()
    await stop.wait()
    await alerts.stop()
    await alerts.aclose()
    await database.close()


if __name__ == "__main__":
    log.setup("alerts")
    asyncio.run(main(sys.argv[1]))
