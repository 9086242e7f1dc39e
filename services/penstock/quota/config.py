"""What the quota service reads from its environment, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.core.config import ConfigError
from penstock.quota.alerts.config import AlertsConfig, read_alerts_config

LISTEN_DEFAULT = "127.0.0.1:7411"
ADMIN_LISTEN_DEFAULT = "127.0.0.1:7412"


@dataclass(frozen=True, slots=True)
class QuotaConfig:
    """Settings of one process.

    Attributes:
        dsn: postgresql://… of the ledger's own database and role.
        listen: host:port of QuotaService, for routers.
        admin_listen: host:port of AdminService, for operators.
        service_token: bearer that routers show.
        admin_token: bearer that operators show; never the same as the routers'.
        alerts: who is told of alerts, see quota/alerts/config.py.
    """

    dsn: str = field(repr=False)
    service_token: str = field(repr=False)
    admin_token: str = field(repr=False)
    listen: str = LISTEN_DEFAULT
    admin_listen: str = ADMIN_LISTEN_DEFAULT
    alerts: AlertsConfig = field(default_factory=AlertsConfig)


def read_dsn(environment: Mapping[str, str]) -> str:
    dsn = environment.get("PENSTOCK_QUOTA_DSN", "")
    if not dsn.startswith(("postgresql://", "postgres://")):
        raise ConfigError(
            ["PENSTOCK_QUOTA_DSN: set it to postgresql://user:password@host:port/database"]
        )
    return dsn


def read_config(environment: Mapping[str, str]) -> QuotaConfig:
    """Raises ConfigError with every fault at once."""
    faults = []
    dsn = ""
    try:
        dsn = read_dsn(environment)
    except ConfigError as error:
        faults += error.faults
    service_token = environment.get("PENSTOCK_SERVICE_TOKEN", "")
    admin_token = environment.get("PENSTOCK_ADMIN_TOKEN", "")
    if not service_token:
        faults.append("PENSTOCK_SERVICE_TOKEN: set it to the token that routers show")
    if not admin_token:
        faults.append("PENSTOCK_ADMIN_TOKEN: set it to the token that operators show")
    if service_token and service_token == admin_token:
        faults.append("PENSTOCK_ADMIN_TOKEN: must differ from PENSTOCK_SERVICE_TOKEN")
    alerts, alerts_faults = read_alerts_config(environment)
    faults += alerts_faults
    if faults:
        raise ConfigError(faults)
    return QuotaConfig(
        dsn=dsn,
        service_token=service_token,
        admin_token=admin_token,
        listen=environment.get("PENSTOCK_QUOTA_LISTEN", LISTEN_DEFAULT),
        admin_listen=environment.get("PENSTOCK_QUOTA_ADMIN_LISTEN", ADMIN_LISTEN_DEFAULT),
        alerts=alerts,
    )
