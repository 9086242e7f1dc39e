"""The object graph of alerts in one quota process."""

import random

from penstock.core.clock import Clock
from penstock.core.telemetry import Telemetry
from penstock.quota.alerts.admin import AlertsAdmin
from penstock.quota.alerts.alert_store import AlertStore
from penstock.quota.alerts.config import AlertsConfig
from penstock.quota.alerts.evaluator import Evaluator
from penstock.quota.alerts.loop import Alerts
from penstock.quota.alerts.post import Poster
from penstock.quota.store.database import Database


def alerts_of(
    config: AlertsConfig, database: Database, clock: Clock, telemetry: Telemetry | None
) -> tuple[Alerts, AlertsAdmin]:
    """What runs by itself, and what operators ask; they share the connections to receivers."""
    store = AlertStore(database)
    poster = Poster(config.secrets, clock)
    evaluator = Evaluator(database, suspense_age=config.suspense_age)
    alerts = Alerts(store, evaluator, poster, clock, config.webhooks, random.random, telemetry)
    return alerts, AlertsAdmin(store, poster, clock, config.webhooks, telemetry)
