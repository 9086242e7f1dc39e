"""What the router reads from its environment, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.core.config import ConfigError
from penstock.router.backends.providers import StandIn

GRPC_LISTEN_DEFAULT = "127.0.0.1:7070"
HTTP_LISTEN_DEFAULT = "127.0.0.1:7080"
QUOTA_ADDRESS_DEFAULT = "127.0.0.1:7411"
CACHE_ADDRESS_DEFAULT = "127.0.0.1:7413"
CAPACITY_ADDRESS_DEFAULT = "127.0.0.1:7414"
METRICS_LISTEN = "PENSTOCK_ROUTER_METRICS_LISTEN"


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Settings of one process.

    Attributes:
        catalogue_path: `penstock.yaml`.
        service_token: Shown to quota, cache and capacity.
        router_token: Shown to replicas.
        environ: All variables: the catalogue names those of providers' keys and URLs.
        grpc_listen: host:port of the gRPC front; port 0: any free one.
        http_listen: host:port of the HTTP front.
        quota_address: host:port to dial; so are the other two.
        metrics_listen: host:port of `GET /metrics`, which asks for no key: never a public one.
            None: metrics are not told.
        stand_in: What plays a provider of the catalogue; None: all are real.
    """

    catalogue_path: Path
    service_token: str = field(repr=False)
    router_token: str = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    grpc_listen: str = GRPC_LISTEN_DEFAULT
    http_listen: str = HTTP_LISTEN_DEFAULT
    quota_address: str = QUOTA_ADDRESS_DEFAULT
    cache_address: str = CACHE_ADDRESS_DEFAULT
    capacity_address: str = CAPACITY_ADDRESS_DEFAULT
    metrics_listen: str | None = None
    stand_in: StandIn | None = None


def read_config(environment: Mapping[str, str]) -> RouterConfig:
    """The configuration.

    Raises:
        ConfigError: with every fault at once, by the variable's name.
    """
    faults = [
        f"{name}: is not set; set it to {what}"
        for name, what in {
            "PENSTOCK_CONFIG": "the path of penstock.yaml",
            "PENSTOCK_SERVICE_TOKEN": "the token that quota, cache and capacity demand",
            "PENSTOCK_ROUTER_TOKEN": "the token that replicas demand",
        }.items()
        if not environment.get(name)
    ]
    addresses = {
        "PENSTOCK_ROUTER_GRPC_LISTEN": GRPC_LISTEN_DEFAULT,
        "PENSTOCK_ROUTER_HTTP_LISTEN": HTTP_LISTEN_DEFAULT,
        "PENSTOCK_QUOTA_ADDRESS": QUOTA_ADDRESS_DEFAULT,
        "PENSTOCK_CACHE_ADDRESS": CACHE_ADDRESS_DEFAULT,
        "PENSTOCK_CAPACITY_ADDRESS": CAPACITY_ADDRESS_DEFAULT,
    }
    found = {name: environment.get(name) or default for name, default in addresses.items()}
    metrics_listen = environment.get(METRICS_LISTEN) or None
    if metrics_listen is not None:
        addresses[METRICS_LISTEN] = "127.0.0.1:7081"
        found[METRICS_LISTEN] = metrics_listen
    faults += [
        f"{name}: {value!r} is no host:port, e.g. {addresses[name]}"
        for name, value in found.items()
        if not _is_address(value)
    ]
    if environment.get("PENSTOCK_STAND_IN"):
        faults += [
            f"{name}: is not set; set it to {what} of the stand-in"
            for name, what in {
                "PENSTOCK_STAND_IN_URL": "the base URL",
                "PENSTOCK_STAND_IN_KEY": "the key",
            }.items()
            if not environment.get(name)
        ]
    if faults:
        raise ConfigError(faults)
    return RouterConfig(
        catalogue_path=Path(environment["PENSTOCK_CONFIG"]),
        service_token=environment["PENSTOCK_SERVICE_TOKEN"],
        router_token=environment["PENSTOCK_ROUTER_TOKEN"],
        environ=dict(environment),
        grpc_listen=found["PENSTOCK_ROUTER_GRPC_LISTEN"],
        http_listen=found["PENSTOCK_ROUTER_HTTP_LISTEN"],
        quota_address=found["PENSTOCK_QUOTA_ADDRESS"],
        cache_address=found["PENSTOCK_CACHE_ADDRESS"],
        capacity_address=found["PENSTOCK_CAPACITY_ADDRESS"],
        metrics_listen=metrics_listen,
        stand_in=_stand_in(environment),
    )


def _stand_in(environment: Mapping[str, str]) -> StandIn | None:
    provider = environment.get("PENSTOCK_STAND_IN")
    if not provider:
        return None
    return StandIn(
        provider,
        base_url=environment["PENSTOCK_STAND_IN_URL"],
        api_key=environment["PENSTOCK_STAND_IN_KEY"],
    )


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon) and port.isdecimal() and int(port) <= 65_535
