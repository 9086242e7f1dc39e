"""Real processes that a proof starts, kills and starts again: quota, and a router-like client."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.core.channel import connect
from penstock.core.ports import free_ports

TOKEN = "service-token-of-a-proof"
READY_SECONDS = 60.0
_PATH = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.getenv("PYTHONPATH")]))
"""A child finds the proofs also where only this process was told of them."""


@dataclass
class Child:
    """A program under one command line; each start of it is a process of its own."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    log: Path
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self.arguments, *self.more_arguments()],
                env=os.environ | {"PYTHONPATH": _PATH} | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def more_arguments(self) -> list[str]:
        return []

    def kill(self) -> None:
        """SIGKILL: nothing of it gets to run any more."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self, seconds: float = 30.0) -> int:
        """SIGTERM, and how it ended."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL


@dataclass
class QuotaChild(Child):
    address: str = ""

    async def ready(self) -> None:
        """Returns when it serves."""
        channel = connect(self.address)
        call = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=READY_SECONDS
        )
        try:
            async for answer in call:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
        finally:
            call.cancel()
            await channel.close()
        raise AssertionError(f"{self.name} does not serve: {self.log.read_text()[-2000:]}")


def quota_child(n: int, dsn: str, folder: Path) -> QuotaChild:
    address, admin_address = (f"127.0.0.1:{port}" for port in free_ports(2))
    environment = {
        "PENSTOCK_QUOTA_DSN": dsn,
        "PENSTOCK_SERVICE_TOKEN": TOKEN,
        "PENSTOCK_ADMIN_TOKEN": "admin-token-of-a-proof",
        "PENSTOCK_QUOTA_LISTEN": address,
        "PENSTOCK_QUOTA_ADMIN_LISTEN": admin_address,
        "OTEL_SDK_DISABLED": "true",
    }
    log = folder / f"quota-{n}.log"
    return QuotaChild(f"quota {n}", ["-m", "penstock.quota"], environment, log, address=address)


@dataclass
class ClientChild(Child):
    """`journal`: one line for each acknowledged answer; see kill_client.py."""

    journal: Path = Path()

    def more_arguments(self) -> list[str]:
        return [str(self.starts)]

    def lines(self) -> int:
        with suppress(FileNotFoundError):
            return self.journal.read_bytes().count(b"\n")
        return 0

    async def progress(self, more: int, seconds: float = READY_SECONDS) -> None:
        """Returns when so much more was acknowledged."""
        wanted = self.lines() + more
        deadline = time.monotonic() + seconds
        while self.lines() < wanted:  # a file of another process tells nobody that it grows
            if time.monotonic() > deadline:
                ended = self.process.poll() if self.process else None
                text = self.log.read_text()[-2000:]
                raise AssertionError(f"{self.name} stands still ({ended=}): {text}")
            await asyncio.sleep(0.02)


def client_child(
    n: int, address: str, keys: list[int], provider: str, folder: Path, seed: int
) -> ClientChild:
    journal = folder / f"journal-{n}.txt"
    arguments = ["-m", "proofs.kill_client", address, ",".join(map(str, keys)), provider]
    return ClientChild(
        f"router {n}",
        [*arguments, str(journal), str(seed)],
        {"PENSTOCK_SERVICE_TOKEN": TOKEN},
        folder / f"router-{n}.log",
        journal=journal,
    )
