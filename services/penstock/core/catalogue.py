"""What an operator writes: the models of `penstock.yaml`. Loading, line numbers and reload:
`config.py`.

Pure data, frozen, validated as a whole. Prices are decimal USD a million tokens, as providers print
them, and become integer nano-USD a million tokens at once.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import date
from typing import Annotated, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from penstock.core.money import Price, parse_usd

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
LOCAL_PROVIDER = "local"
APPLICATION_PREFIX = "local-"

STAND_IN_SUFFIX = "-stand-in"
"""Told in receipts and in the ledger, so that nobody takes its answers for the provider's."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


Fault: TypeAlias = tuple[tuple[str | int, ...], str]
"""Where in the file, and what is wrong."""


def _usd_per_mtok(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        # Pydantic reports a ValueError with its field; a TypeError would end the whole check.
        raise ValueError("write prices as text, e.g. '0.15': a float cannot hold money exactly")  # noqa: TRY004
    return parse_usd(str(value))


UsdPerMtok = Annotated[int, BeforeValidator(_usd_per_mtok)]
"""Written as decimal USD a million tokens, held as int nano-USD a million tokens."""


def application_of(model: str) -> str:
    """The Ray Serve application of a local model; also the `application` metadata of its calls."""
    return f"{APPLICATION_PREFIX}{model}"


class Section(BaseModel):
    """A part of the file: frozen, and an unknown field is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tariff(Section):
    """What a token costs the tenant. `source` and `as_of` say where the figure comes from."""

    input_usd_per_mtok: UsdPerMtok
    output_usd_per_mtok: UsdPerMtok
    cached_input_usd_per_mtok: UsdPerMtok | None = None
    source: str = ""
    as_of: date | None = None

    @property
    def price(self) -> Price:
        cached = self.cached_input_usd_per_mtok
        return Price(
            input_nano_usd_per_mtok=self.input_usd_per_mtok,
            cached_input_nano_usd_per_mtok=self.input_usd_per_mtok if cached is None else cached,
            output_nano_usd_per_mtok=self.output_usd_per_mtok,
        )


class Template(Section):
    """Upper bounds of what a chat template adds, in tokens."""

    tokens_base: int = Field(default=64, ge=0, le=4096)
    tokens_per_message: int = Field(default=8, ge=0, le=256)


class LocalModel(Section):
    """A model of our own, served by Ray Serve; asked for as `local/<name>`."""

    engine: Literal["llamacpp", "vllm"] = "llamacpp"
    source: str = Field(min_length=1, max_length=1024)
    """`package:<module>/<glob>`, a path, or `hf:<repository>[/<file>]`."""
    format: str = "gguf-q4_1"
    context_tokens: int = Field(ge=64, le=2_000_000)
    """Of one slot: prompt and completion together."""
    max_output_tokens: int = Field(ge=1, le=1_000_000)
    replicas: int = Field(default=1, ge=0, le=1024)
    slots: int = Field(default=4, ge=1, le=1024)
    """Choices that one replica generates at once."""
    queue_limit: int = Field(default=4, ge=0, le=1024)
    """Choices that may wait in one replica; more are refused at once."""
    threads: int = Field(default=1, ge=1, le=256)
    """They spin while they wait for each other: each needs a core that nothing else uses."""
    cpus: float = Field(default=1, ge=0, le=1024)
    gpus: float = Field(default=0, ge=0, le=64)
    supports_tools: bool = False
    """Its chat template shows tools, or its engine does (vLLM). False: requests with tools go to
    the next target, or are refused; a template without a place for them drops them silently.
    """
    tariff: Tariff
    template: Template = Template()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_output_tokens > self.context_tokens:
            raise ValueError("max_output_tokens is more than context_tokens: lower it")
        return self


class PaidModel(Section):
    """A provider's model; asked for as `<provider>/<name>`."""

    upstream_name: str | None = None
    """What the provider calls it, if not by its name here."""
    context_tokens: int = Field(ge=64, le=100_000_000)
    max_output_tokens: int = Field(ge=1, le=10_000_000)
    price: Tariff
    reasoning: bool = False
    """Makes tokens that are billed and not shown: a broken stream is charged its whole hold."""
    max_tokens_field: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    image_tokens_max: int | None = Field(default=None, ge=1)
    """Upper bound of one image; absent: a request with an image is refused."""
    template: Template = Template()


def base_url(value: str) -> str:
    """The URL itself.

    Raises:
        ValueError: it is none.
    """
    try:
        parts = urlsplit(value)
        is_whole = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or not value.isprintable() or " " in value:
        raise ValueError("must be a URL such as https://api.example.com/v1")
    return value


def _variable_name(value: str) -> str:
    if not value.isascii() or not value.isidentifier():
        # Not told back: it may be the key itself.
        raise ValueError("must be the name of a variable of the environment, e.g. ACME_API_KEY")
    return value


VariableName = Annotated[str, AfterValidator(_variable_name)]


class Provider(Section):
    """A paid API that speaks OpenAI's protocol. Off while the variable `api_key_env` is not set.

    `openai` has defaults for its URL and its variables; every other provider names its own, for it
    would be sent OpenAI's key, or OpenAI its.
    """

    kind: Literal["openai"] = "openai"
    base_url: Annotated[str, AfterValidator(base_url)]
    base_url_env: VariableName | None = None
    """Names a variable that, where it is set, takes the place of `base_url`."""
    api_key_env: VariableName
    connect_timeout_seconds: float = Field(default=5, gt=0, le=60)
    first_byte_timeout_seconds: float = Field(default=60, gt=0, le=600)
    idle_timeout_seconds: float = Field(default=60, gt=0, le=600)
    """Between two chunks of a stream."""
    in_flight_max: int = Field(default=256, ge=1, le=100_000)
    models: dict[Name, PaidModel] = Field(default_factory=dict)


OPENAI = "openai"

OPENAI_DEFAULTS = {
    "base_url": "https://api.openai.com/v1",
    "base_url_env": "OPENAI_BASE_URL",
    "api_key_env": "OPENAI_API_KEY",
}


class Alias(Section):
    """A name that requests use; answered by the first target that can."""

    targets: list[str] = Field(min_length=1, max_length=16)
    baseline: str | None = None
    """The model whose price is the all-paid counterfactual; absent: the last target."""


class CacheSettings(Section):
    enabled: bool = True
    ttl_seconds: int = Field(default=86_400, ge=1, le=31_536_000)
    entry_bytes_max: int = Field(default=262_144, ge=1_024, le=16_777_216)


class Limits(Section):
    """Of one request."""

    request_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1024, le=16 * 1024 * 1024)
    """At most half of what our services' own messages may have (`core/channel.py`)."""
    messages_max: int = Field(default=1024, ge=1, le=10_000)
    tools_max: int = Field(default=128, ge=0, le=1024)
    n_max: int = Field(default=8, ge=1, le=128)
    deadline_seconds_default: float = Field(default=120, gt=0, le=3600)
    deadline_seconds_max: float = Field(default=600, gt=0, le=3600)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.deadline_seconds_default > self.deadline_seconds_max:
            raise ValueError("deadline_seconds_default is more than deadline_seconds_max")
        return self


class RoutingSettings(Section):
    attempts_max: int = Field(default=4, ge=1, le=16)
    """Tries of one request, over all targets; of a local one two replicas are asked at most."""
    wait_margin_ms: int = Field(default=500, ge=0, le=60_000)
    """Left over for the next target when a wait is weighed against the deadline."""
    breaker_failures: int = Field(default=3, ge=1, le=100)
    """Failures in a row that eject a replica or a provider."""
    breaker_open_seconds: float = Field(default=5, gt=0, le=600)


class LedgerSettings(Section):
    slice_tokens: int = Field(default=4096, ge=0, le=100_000_000)
    """Output tokens that are held at once: a longer answer is held slice by slice as it comes, and
    ends with `finish_reason: budget` where no more can be held. 0: the whole bound, up front."""
    waiting_max: int = Field(default=256, ge=0, le=100_000)
    """Requests that wait until a provider's rate limit frees up, for each pool; more are refused.
    """


class TelemetrySettings(Section):
    record_prompts: bool = False
    """Write prompts and answers into spans. Off: they may hold personal data."""


def _known_version(value: int) -> int:
    if value != 1:
        raise ValueError(f"version {value} is not known; this release reads version 1")
    return value


class Catalogue(Section):
    """The whole file."""

    version: Annotated[int, AfterValidator(_known_version)] = 1
    models: dict[Name, LocalModel] = Field(default_factory=dict)
    providers: dict[Name, Provider] = Field(default_factory=dict)
    aliases: dict[Name, Alias] = Field(default_factory=dict)
    cache: CacheSettings = CacheSettings()
    limits: Limits = Limits()
    routing: RoutingSettings = RoutingSettings()
    ledger: LedgerSettings = LedgerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @field_validator("providers", mode="before")
    @classmethod
    def _openai_is_known(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get(OPENAI), dict):
            return {**value, OPENAI: {**OPENAI_DEFAULTS, **value[OPENAI]}}
        return value

    def local(self, name: str) -> LocalModel | None:
        return self.models.get(name)

    def paid(self, provider: str, name: str) -> PaidModel | None:
        found = self.providers.get(provider)
        return found.models.get(name) if found else None

    def max_output_tokens_of(self, target: str) -> int | None:
        """The bound of `local/<name>` or `<provider>/<name>`; None: no such target."""
        provider, _, name = target.partition("/")
        model = self.local(name) if provider == LOCAL_PROVIDER else self.paid(provider, name)
        return model.max_output_tokens if model else None

    def price_of(self, target: str) -> Price | None:
        """The price of `local/<name>` or `<provider>/<name>`; None: no such target."""
        provider, _, name = target.partition("/")
        if provider == LOCAL_PROVIDER:
            model = self.local(name)
            return model.tariff.price if model else None
        paid = self.paid(provider, name)
        return paid.price.price if paid else None

    def baseline_of(self, alias: str) -> str:
        found = self.aliases[alias]
        return found.baseline or found.targets[-1]

    @property
    def targets(self) -> set[str]:
        """All that a request or an alias can name, aliases aside."""
        return targets_of(self.models, {name: p.models for name, p in self.providers.items()})

    def faults(self) -> list[Fault]:
        """What no single field can see."""
        return cross_faults(self.targets, self.providers, self.aliases)


def targets_of(models: Iterable[str], models_by_provider: Mapping[str, Iterable[str]]) -> set[str]:
    """`local/<name>` and `<provider>/<name>`."""
    pools = {**models_by_provider, LOCAL_PROVIDER: models}
    return {f"{provider}/{name}" for provider, names in pools.items() for name in names}


def cross_faults(
    targets: Collection[str], providers: Iterable[str], aliases: Mapping[str, Alias]
) -> list[Fault]:
    found: list[Fault] = []
    if LOCAL_PROVIDER in providers:
        found.append((("providers", LOCAL_PROVIDER), "'local' is the name of our own pool"))
    for name, alias in aliases.items():
        named: list[Fault] = [
            (("aliases", name, "targets", i), target) for i, target in enumerate(alias.targets)
        ]
        if alias.baseline:
            named.append((("aliases", name, "baseline"), alias.baseline))
        found += [
            (path, f"{target!r} is neither local/<model> nor <provider>/<model> of this file")
            for path, target in named
            if target not in targets
        ]
    return found
