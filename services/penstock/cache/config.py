"""The cache's settings, read once from the environment."""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from penstock.core.config import ConfigError

_VARIABLES = {
    "dsn": "PENSTOCK_CACHE_DSN",
    "service_token": "PENSTOCK_SERVICE_TOKEN",
    "listen": "PENSTOCK_CACHE_LISTEN",
    "bytes_max": "PENSTOCK_CACHE_BYTES_MAX",
    "entry_bytes_max": "PENSTOCK_CACHE_ENTRY_BYTES_MAX",
    "connections_max": "PENSTOCK_CACHE_CONNECTIONS_MAX",
}


class Config(BaseModel):
    """Frozen. Its text shows no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dsn: SecretStr = Field(min_length=1)
    """PostgreSQL of the cache: a database and a role of its own."""
    service_token: SecretStr = Field(min_length=1)
    """What routers must show."""
    listen: str = Field(default="127.0.0.1:7413", pattern=r"^.+:\d{1,5}$")
    """host:port."""
    bytes_max: int = Field(default=1024**3, ge=1024**2)
    """Of all answers together; the least recently used go first."""
    entry_bytes_max: int = Field(default=16 * 1024**2, ge=1024, le=16 * 1024**2)
    """Of one answer: the outer bound. Routers keep to the catalogue's `cache.entry_bytes_max`."""
    connections_max: int = Field(default=8, ge=2, le=1_000)
    """To PostgreSQL, for statements; one more listens."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Raises ConfigError with every fault."""
        given = {f: environment[v] for f, v in _VARIABLES.items() if environment.get(v)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError(
                [
                    f"{_VARIABLES[str(e['loc'][0])]}: {_plain(e['type'], e['msg'])}"
                    for e in error.errors(include_input=False, include_url=False)
                ]
            ) from None


def _plain(kind: str, message: str) -> str:
    return "is not set" if kind == "missing" else message
