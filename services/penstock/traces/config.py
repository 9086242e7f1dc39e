"""What the trace receiver reads from its environment, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from penstock.core.config import ConfigError
from penstock.core.telemetry_collector import Collector, collector

LISTEN_DEFAULT = "127.0.0.1:7418"
KEEP_DEFAULT = 5_000
KEEP_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class TracesConfig:
    """Settings of the process.

    Attributes:
        store: Folder of the kept traces.
        listen: host:port for OTLP over gRPC.
        keep: Traces that are kept; the oldest go first.
        token: Bearer that senders show (OTEL_EXPORTER_OTLP_HEADERS); None: anybody who can connect.
        forward: The user's own collector, which gets everything too; None: there is none.
    """

    store: Path
    listen: str = LISTEN_DEFAULT
    keep: int = KEEP_DEFAULT
    token: str | None = field(default=None, repr=False)
    forward: Collector | None = None


def read_config(environment: Mapping[str, str]) -> TracesConfig:
    """Raises ConfigError with every fault at once."""
    faults = []
    store = environment.get("PENSTOCK_TRACES_STORE", "")
    if not store:
        faults.append("PENSTOCK_TRACES_STORE: set it to a folder for the kept traces")
    keep_text = environment.get("PENSTOCK_TRACES_KEEP", str(KEEP_DEFAULT))
    keep = int(keep_text) if keep_text.isdecimal() and len(keep_text) < 10 else 0
    if not 1 <= keep <= KEEP_MAX:
        faults.append(f"PENSTOCK_TRACES_KEEP: {keep_text!r} is no number from 1 to {KEEP_MAX}")
    forward = None
    try:
        forward = collector(environment)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults)
    return TracesConfig(
        store=Path(store),
        listen=environment.get("PENSTOCK_TRACES_LISTEN", LISTEN_DEFAULT),
        keep=keep,
        token=environment.get("PENSTOCK_TRACES_TOKEN") or None,
        forward=forward,
    )
