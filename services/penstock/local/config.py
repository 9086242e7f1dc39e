"""What the local part reads once: its environment, and of the catalogue the models it serves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from penstock.core.catalogue import LocalModel
from penstock.core.config import ConfigError

RAY_API_DEFAULT = "http://127.0.0.1:8265"
RAY_ADDRESS_DEFAULT = "127.0.0.1:6379"
DEPLOYMENT = "Replica"
"""The one deployment of each application."""

DRAIN_SECONDS = 20.0
"""A stopping replica lets its streams end within this."""


class ReplicaSettings(BaseModel):
    """Everything that one replica needs, as plain data: it goes through Ray's API. No secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    engine: str
    path: str
    format: str
    context_tokens: int
    replicas: int
    slots: int
    queue_limit: int
    threads: int
    cpus: float
    gpus: float
    drain_seconds: float = DRAIN_SECONDS


def replica_settings(name: str, model: LocalModel, path: Path) -> ReplicaSettings:
    return ReplicaSettings(
        name=name,
        engine=model.engine,
        path=str(path),
        format=model.format,
        context_tokens=model.context_tokens,
        replicas=model.replicas,
        slots=model.slots,
        queue_limit=model.queue_limit,
        threads=model.threads,
        cpus=model.cpus,
        gpus=model.gpus,
    )


@dataclass(frozen=True, slots=True)
class Ports:
    """Of the Ray head; all on one machine."""

    dashboard: int
    gcs: int


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """The environment of `python -m penstock.local`."""

    catalogue_path: Path
    ports: Ports
    ray_token: str = field(repr=False)
    router_token: str = field(repr=False)
    ready_file: Path | None
    """Written when every model answers; absent: not written."""


def router_token(env: Mapping[str, str]) -> str:
    return _demand(env, "PENSTOCK_ROUTER_TOKEN", "the token that routers show to replicas")


def read(env: Mapping[str, str]) -> LocalConfig:
    """The configuration.

    Raises:
        ConfigError: a variable is missing or no address.
    """
    ready_file = env.get("PENSTOCK_LOCAL_READY_FILE")
    api = urlsplit(env.get("PENSTOCK_RAY_API", RAY_API_DEFAULT))
    gcs = urlsplit("//" + env.get("PENSTOCK_RAY_ADDRESS", RAY_ADDRESS_DEFAULT))
    if api.port is None:
        raise ConfigError(["PENSTOCK_RAY_API: has no port; write e.g. http://127.0.0.1:8265"])
    if gcs.port is None:
        raise ConfigError(["PENSTOCK_RAY_ADDRESS: has no port; write e.g. 127.0.0.1:6379"])
    return LocalConfig(
        catalogue_path=Path(_demand(env, "PENSTOCK_CONFIG", "the path of penstock.yaml")),
        ports=Ports(dashboard=api.port, gcs=gcs.port),
        ray_token=_demand(env, "RAY_AUTH_TOKEN", "a secret for Ray's API and joins"),
        router_token=router_token(env),
        ready_file=Path(ready_file) if ready_file else None,
    )


def _demand(env: Mapping[str, str], name: str, what: str) -> str:
    value = env.get(name, "")
    if not value:
        raise ConfigError([f"{name}: is not set; set it to {what}"])
    return value
