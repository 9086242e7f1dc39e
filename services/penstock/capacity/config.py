"""The environment of `python -m penstock.capacity`, read once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.core.config import ConfigError

LISTEN_DEFAULT = "127.0.0.1:7414"
RAY_API_DEFAULT = "http://127.0.0.1:8265"


@dataclass(frozen=True, slots=True)
class CapacityConfig:
    listen: str
    """host:port of the gRPC server."""
    catalogue_path: Path
    service_token: str = field(repr=False)
    """Demanded of routers."""
    router_token: str = field(repr=False)
    """Shown to replicas."""
    ray_api: str
    """Base URL of Ray's REST API."""
    ray_token: str = field(repr=False)


def read(env: Mapping[str, str]) -> CapacityConfig:
    """The configuration.

    Raises:
        ConfigError: names every variable that is missing.
    """
    demanded = {
        "PENSTOCK_CONFIG": "the path of penstock.yaml",
        "PENSTOCK_SERVICE_TOKEN": "the token that routers show to this service",
        "PENSTOCK_ROUTER_TOKEN": "the token that replicas demand",
        "RAY_AUTH_TOKEN": "the token of Ray's API",
    }
    missing = [
        f"{name}: is not set; set it to {what}"
        for name, what in demanded.items()
        if not env.get(name)
    ]
    if missing:
        raise ConfigError(missing)
    return CapacityConfig(
        listen=env.get("PENSTOCK_CAPACITY_LISTEN", LISTEN_DEFAULT),
        catalogue_path=Path(env["PENSTOCK_CONFIG"]),
        service_token=env["PENSTOCK_SERVICE_TOKEN"],
        router_token=env["PENSTOCK_ROUTER_TOKEN"],
        ray_api=env.get("PENSTOCK_RAY_API", RAY_API_DEFAULT),
        ray_token=env["RAY_AUTH_TOKEN"],
    )
