"""Which OTLP collector OpenTelemetry's standard variables name, and how it is spoken to.

Of each variable the one for traces (`OTEL_EXPORTER_OTLP_TRACES_…`) wins over the general one
(`OTEL_EXPORTER_OTLP_…`), and an empty one is as good as none, as the specification of OTLP's
exporters has it. docs/telemetry.md lists them.
"""

import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import grpc
from opentelemetry.util.re import parse_env_headers

from penstock.core.config import ConfigError

Protocol = Literal["grpc", "http/protobuf"]

HTTP_PATH: Final = "/v1/traces"
"""Follows a general endpoint; one for traces alone is the whole address."""

TIMEOUT_MS_DEFAULT: Final = 10_000
"""OpenTelemetry's, for one export."""

TIMEOUT_MS_MAX: Final = 600_000

SILENCE_SECONDS: Final = 60.0
"""At least between two lines that a collector went away."""


@dataclass(frozen=True, slots=True)
class Collector:
    """Where traces go.

    Attributes:
        url: http(s)://…, the whole of it; of its path gRPC takes no notice.
        headers: By lower-case name; as a rule a secret.
        is_gzip: What is sent is compressed.
        certificate: PEM file of who signed the collector's; None: the system's authorities.
        client_key, client_certificate: PEM files of our own, where the collector demands them.
    """

    url: str
    protocol: Protocol
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_seconds: float = TIMEOUT_MS_DEFAULT / 1000
    is_gzip: bool = False
    certificate: Path | None = None
    client_key: Path | None = None
    client_certificate: Path | None = None

    def __str__(self) -> str:
        return f"{self.url} by {self.protocol}"

    @property
    def target(self) -> str:
        """For gRPC: host:port."""
        return urlsplit(self.url).netloc

    def grpc_credentials(self) -> grpc.ChannelCredentials | None:
        """None: plain text. Raises OSError: a file cannot be read."""
        if self.url.startswith("http://"):
            return None
        files = (self.certificate, self.client_key, self.client_certificate)
        return grpc.ssl_channel_credentials(*(f.read_bytes() if f else None for f in files))

    def ssl_context(self) -> ssl.SSLContext:
        """Raises OSError: a file cannot be read, or is none of its kind."""
        context = ssl.create_default_context(cafile=self.certificate)
        if self.client_certificate:
            context.load_cert_chain(self.client_certificate, self.client_key)
        return context


def collector(environment: Mapping[str, str]) -> Collector | None:
    """None: traces are sent nowhere.

    Raises:
        ConfigError: with every fault, each by the variable that was set.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    read = _Reader(environment)
    if not read.text("ENDPOINT"):
        return None
    protocol = read.protocol()
    found = Collector(
        url=read.url(protocol),
        protocol=protocol,
        headers=parse_env_headers(read.text("HEADERS"), liberal=True),
        timeout_seconds=read.timeout_seconds(),
        is_gzip=read.is_gzip(),
        certificate=read.file("CERTIFICATE"),
        client_key=read.file("CLIENT_KEY"),
        client_certificate=read.file("CLIENT_CERTIFICATE"),
    )
    if read.faults:
        raise ConfigError(read.faults)
    if found.certificate or found.client_certificate:
        try:
            found.ssl_context()
        except OSError as error:
            name = read.variable("CERTIFICATE" if found.certificate else "CLIENT_CERTIFICATE")
            raise ConfigError([f"{name}: no certificate in PEM: {error}"]) from None
    return found


class _Reader:
    """The variables by their last word; each fault under the name of the one that was set."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.faults: list[str] = []

    def variable(self, name: str) -> str:
        of_traces = f"OTEL_EXPORTER_OTLP_TRACES_{name}"
        is_set = self._environment.get(of_traces, "").strip()
        return of_traces if is_set else f"OTEL_EXPORTER_OTLP_{name}"

    def text(self, name: str) -> str:
        return self._environment.get(self.variable(name), "").strip()

    def _fault(self, name: str, what: str) -> None:
        self.faults.append(f"{self.variable(name)}: {self.text(name)!r} {what}")

    def url(self, protocol: Protocol) -> str:
        url = self.text("ENDPOINT")
        if "://" not in url:
            self._fault(
                "ENDPOINT", f"has no scheme: write http://{url}, or https://{url} where it has TLS"
            )
            return url
        if not _is_address(url):
            self._fault("ENDPOINT", "is no address: write http://host:port, or https://host:port")
        elif "@" in urlsplit(url).netloc:
            # Not shown: an address is logged, and this one holds a secret.
            self.faults.append(
                f"{self.variable('ENDPOINT')}: holds a user or password: put them into"
                " OTEL_EXPORTER_OTLP_HEADERS, as authorization=Basic%20…"
            )
        is_general = "TRACES" not in self.variable("ENDPOINT")
        if protocol == "http/protobuf" and is_general:
            return url.rstrip("/") + HTTP_PATH
        return url

    def protocol(self) -> Protocol:
        match self.text("PROTOCOL"):
            case "" | "grpc":
                return "grpc"
            case "http/protobuf":
                return "http/protobuf"
            case _:
                self._fault("PROTOCOL", "is not spoken here: set it to grpc or http/protobuf")
                return "grpc"

    def timeout_seconds(self) -> float:
        text = self.text("TIMEOUT") or str(TIMEOUT_MS_DEFAULT)
        is_number = text.isascii() and text.isdecimal() and len(text) < 10
        if not (is_number and 1 <= int(text) <= TIMEOUT_MS_MAX):
            self._fault("TIMEOUT", f"is no number of milliseconds from 1 to {TIMEOUT_MS_MAX}")
            return TIMEOUT_MS_DEFAULT / 1000
        return int(text) / 1000

    def is_gzip(self) -> bool:
        if self.text("COMPRESSION") not in {"", "none", "gzip"}:
            self._fault("COMPRESSION", "is not known here: set it to gzip or none")
        return self.text("COMPRESSION") == "gzip"

    def file(self, name: str) -> Path | None:
        if not self.text(name):
            return None
        path = Path(self.text(name))
        try:
            path.read_bytes()
        except OSError as error:
            self._fault(name, f"cannot be read: {error.strerror}")
        return path


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class Reach:
    """Whether a collector is reached: a log line when it goes away, and one when it is back."""

    def __init__(
        self, logger: logging.Logger, where: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._where = where
        self._monotonic = monotonic
        self._told_at = -SILENCE_SECONDS
        self._is_told = False
        self.trouble = ""
        """In a sentence; "" while it is reached."""
        self.lost = 0
        """Since the start; in the unit of whoever counts."""

    def failed(self, why: str, lost: int) -> None:
        self.lost += lost
        self.trouble = (
            f"traces do not reach {self._where} ({why}): is a collector there, and is this its"
            " protocol (OTEL_EXPORTER_OTLP_PROTOCOL)?"
        )
        now = self._monotonic()
        if not self._is_told and now - self._told_at >= SILENCE_SECONDS:
            self._is_told, self._told_at = True, now
            self._logger.warning("%s", self.trouble)

    def worked(self) -> None:
        self.trouble = ""
        if self._is_told:
            self._is_told = False
            self._logger.info("traces reach %s again; %d were lost", self._where, self.lost)
