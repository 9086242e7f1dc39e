"""What `penstock up` is asked for, checked as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.ports import GRPC_DEFAULT, HTTP_DEFAULT

VLLM = "vllm"
ENGINES = ("llamacpp", VLLM)
STAND_IN = "stand-in"
PAID = ("", STAND_IN)

STOOD_IN_PROVIDER = "openai"
"""The provider of the catalogue that the stand-in plays."""

VARIABLES = {
    "paid": "PAID",
    "engine": "ENGINE",
    "config": "PENSTOCK_CONFIG",
    "grpc_port": "PENSTOCK_GRPC_PORT",
    "http_port": "PENSTOCK_HTTP_PORT",
}
"""How each option is called in the environment."""

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "penstock.yaml"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Of one `up`.

    Attributes:
        paid: "" (whatever OPENAI_API_KEY says) or "stand-in".
        engine: Of the local models.
        config: The catalogue.
        vllm_python: Interpreter of vLLM's own environment.
    """

    paid: str
    engine: str
    config: Path
    grpc_port: int
    http_port: int
    vllm_python: Path

    @property
    def told(self) -> dict[str, str]:
        """What makes two `up`s differ; kept while one runs."""
        return {
            "paid": self.paid,
            "engine": self.engine,
            "config": str(self.config),
            "grpc_port": str(self.grpc_port),
            "http_port": str(self.http_port),
        }


def read(
    environment: Mapping[str, str],
    *,
    paid: str | None,
    engine: str | None,
    config: Path | None,
    grpc_port: int | None,
    http_port: int | None,
) -> UpOptions:
    """Flags over environment over defaults.

    Raises:
        CliError: a value that is none of the possible ones.
    """
    return UpOptions(
        paid=_one_of("PAID", paid or environment.get("PAID", ""), PAID),
        engine=_one_of("ENGINE", engine or environment.get("ENGINE", "") or ENGINES[0], ENGINES),
        config=config_path(config, environment),
        grpc_port=_port("PENSTOCK_GRPC_PORT", grpc_port, environment, GRPC_DEFAULT),
        http_port=_port("PENSTOCK_HTTP_PORT", http_port, environment, HTTP_DEFAULT),
        vllm_python=Path(environment.get("PENSTOCK_VLLM_PYTHON") or ".venv-vllm/bin/python"),
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value in known:
        return value
    listed = " or ".join(k for k in known if k)
    raise CliError(f"{name}={value} is not known; write {name}={listed}", code=BAD_USAGE)


def _port(name: str, flag: int | None, environment: Mapping[str, str], default: int) -> int:
    if flag is not None:
        return flag
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise CliError(f"{name}={text} is no port; write e.g. {name}={default}", code=BAD_USAGE)
    return int(text)


def config_path(flag: Path | None, environment: Mapping[str, str]) -> Path:
    """Where the catalogue lies: as said, else in this folder, else in the package.

    Raises:
        CliError: it was said, and is not there.
    """
    named = flag or (Path(p) if (p := environment.get("PENSTOCK_CONFIG")) else None)
    if named is not None:
        if not named.is_file():
            raise CliError(
                f"the configuration {named} is not there",
                remedy="`penstock config example > penstock.yaml` makes one.",
                code=BAD_USAGE,
            )
        return named.resolve()
    here = Path("penstock.yaml")
    return here.resolve() if here.is_file() else DEFAULT_CONFIG
