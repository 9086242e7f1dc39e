"""A private Ray head on one machine: started as a child, ended alone, nothing else touched."""

import asyncio
import contextlib
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from penstock.core.ports import free_ports, why_taken
from penstock.local import processes
from penstock.local.config import Ports, ReplicaSettings
from penstock.local.ports import NoFreePorts, PortBlock, claim_block
from penstock.local.serve_api import ApiSilent, AppState, DeployFailed, ServeApi

OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Answers do not pass through Ray's object store; its own minimum is 75 MB."""

START_SECONDS = 120.0
"""Until the head's API answers: about 6 s on an idle machine, many times that on a busy one."""

STOP_SECONDS = 10.0
"""For the kernel to take away killed processes, some with gigabytes."""

STALL_SECONDS = 600.0
"""Without any change: long enough to load a large model from a slow disk."""

POLL_SECONDS = 0.2
"""Ray has no event for "is up": its API is asked."""

LOG_TAIL_CHARACTERS = 2000
"""Of the head's log, where it failed: the last error is in it."""

MIN_DRAINING_SECONDS = 2
"""A replica stays at least this long after it left the list, so that routers hear of it first."""

Progress = Callable[[str], None]


class HeadFailed(Exception):
    """The Ray head did not come up, or ended; says why, with the end of its log."""


@dataclass(frozen=True, slots=True)
class HeadSettings:
    ports: Ports
    ray_token: str = field(repr=False)
    router_token: str = field(repr=False)
    cpus: int

    @property
    def folder(self) -> Path:
        # Short: Ray puts unix sockets deep below it, and their paths end at 107 characters.
        return Path(tempfile.gettempdir()) / f"penstock-{os.getuid()}-{self.ports.gcs}"

    @property
    def working_folder(self) -> Path:
        """Nobody but the head's processes works here: that is how they are found again."""
        return self.folder / "head"

    @property
    def ray_folder(self) -> Path:
        """Ray opens it to everybody on the machine; the folder around it stays ours alone."""
        return self.folder / "r"

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.dashboard}"


def logical_cpus(models: Sequence[ReplicaSettings]) -> int:
    """What Ray is told this machine has: enough for every configured replica."""
    demanded = math.ceil(sum(m.cpus * m.replicas for m in models))
    # One more, so that a replica can be started before the one that it replaces is gone.
    return max(os.cpu_count() or 1, demanded + 1)


def head_environment(
    settings: HeadSettings, env: Mapping[str, str], block: PortBlock
) -> dict[str, str]:
    """Of the head and, inherited, of every replica."""
    return {
        **env,
        "PENSTOCK_ROUTER_TOKEN": settings.router_token,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": settings.ray_token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray binds to the address of its node; without "cluster" that is the loopback address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(MIN_DRAINING_SECONDS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(block.http[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(block.http[1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(block.grpc[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(block.grpc[1]),
    }


def head_command(settings: HeadSettings) -> list[str]:
    agent_http, agent_grpc, runtime_env, metrics, client_server = free_ports(5)
    return [
        sys.executable,
        *("-m", "ray.scripts.scripts", "start", "--head", "--block"),
        f"--port={settings.ports.gcs}",
        f"--dashboard-port={settings.ports.dashboard}",
        "--dashboard-host=127.0.0.1",
        "--include-dashboard=true",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        f"--dashboard-agent-listen-port={agent_http}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--runtime-env-agent-port={runtime_env}",
        f"--metrics-export-port={metrics}",
        f"--ray-client-server-port={client_server}",
        # 0: any free ports; Ray's default is a fixed range, which other parts may use.
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--num-cpus={settings.cpus}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={settings.ray_folder}",
    ]


class Head:
    """The child process and its folder."""

    def __init__(self, settings: HeadSettings) -> None:
        self._settings = settings
        self._child: asyncio.subprocess.Process | None = None
        self._block: PortBlock | None = None

    @property
    def log_path(self) -> Path:
        return self._settings.folder / "head.log"

    async def start(self, progress: Progress) -> None:
        """Returns when the head's API answers.

        Raises:
            HeadFailed: a port is taken, or the head ended or stayed silent.
        """
        await asyncio.to_thread(self._clear_leftovers, progress)
        self._demand_free_ports()
        try:
            self._block = await asyncio.to_thread(claim_block)
        except (NoFreePorts, OSError) as error:
            raise HeadFailed(f"no ports for the replicas: {error}") from None
        progress("starting Ray")
        with self.log_path.open("wb") as log:
            self._child = await asyncio.create_subprocess_exec(
                *head_command(self._settings),
                env=head_environment(self._settings, os.environ, self._block),
                cwd=self._settings.working_folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                preexec_fn=processes.die_with_parent,
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._answers():
                    self._demand_alive()
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise HeadFailed(
                f"Ray's API did not answer within {START_SECONDS:.0f} s:\n{self._log_tail()}"
            ) from None

    async def ended(self) -> int:
        """Waits until the head has ended by itself; its exit status."""
        assert self._child is not None
        return await self._child.wait()

    async def stop(self) -> None:
        """Ends every process of this head and removes its folder. Safe to call twice."""
        # Ray's own way down takes 15 s and leaves agents behind. There is nothing to save: routers
        # have drained before, and what a head knows is made anew at each start.
        if self._child is not None:
            # Before the others: psutil would take its exit status away from the event loop.
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                self._child.kill()
            await self._child.wait()
        await asyncio.to_thread(self._kill_all)
        await asyncio.to_thread(shutil.rmtree, self._settings.folder, ignore_errors=True)
        if self._block is not None:
            self._block.release()

    def _clear_leftovers(self, progress: Progress) -> None:
        count = self._kill_all()
        if count:
            progress(f"ended {count} processes of a Ray head that was killed")
        shutil.rmtree(self._settings.folder, ignore_errors=True)
        try:
            self._settings.folder.mkdir(mode=0o700)
            self._settings.working_folder.mkdir()
            self._settings.ray_folder.mkdir()
        except OSError as error:
            raise HeadFailed(f"cannot make the folder of the Ray head: {error}") from None

    def _kill_all(self) -> int:
        """Until none is found: one that was about to start another may have done so."""
        count = 0
        while found := processes.working_in(self._settings.working_folder):
            count += len(found)
            processes.kill(found, timeout_seconds=STOP_SECONDS)
        return count

    def _demand_free_ports(self) -> None:
        for port in (self._settings.ports.gcs, self._settings.ports.dashboard):
            if why := why_taken("127.0.0.1", port):
                raise HeadFailed(
                    f"port {port} for Ray is taken ({why}): stop what listens "
                    "there, or set PENSTOCK_RAY_ADDRESS and PENSTOCK_RAY_API to other ports"
                )

    def _demand_alive(self) -> None:
        assert self._child is not None
        if self._child.returncode is not None:
            status = self._child.returncode
            raise HeadFailed(f"the Ray head ended with status {status}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        # Told in full, for the folder goes when the head is stopped.
        return self.log_path.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]

    async def _answers(self) -> bool:
        headers = {"Authorization": f"Bearer {self._settings.ray_token}"}
        try:
            async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
                reply = await client.get(f"{self._settings.api_url}/api/version")
        except httpx.TransportError:
            return False
        return reply.is_success


async def deploy(api: ServeApi, models: Sequence[ReplicaSettings], progress: Progress) -> None:
    """Deploys exactly these models and returns when each one answers.

    Raises:
        DeployFailed: with Serve's own words, e.g. that the weights are broken; or nothing has
            changed for `STALL_SECONDS`.
    """
    progress("starting Ray Serve")
    await api.deploy(models)
    told = ""
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                text = await _next_text(api, len(models), told)
        except TimeoutError:
            raise DeployFailed(f"no progress for {STALL_SECONDS:.0f} s: {told}") from None
        if not text:
            return
        progress(text)
        told = text


async def _next_text(api: ServeApi, count: int, told: str) -> str:
    """What is waited for, once it is something else than `told`; empty: for nothing more."""
    while True:
        try:
            text = _waiting_for(await api.states(), count)
        except ApiSilent as silent:
            text = str(silent)
        if text != told or not text:
            return text
        await asyncio.sleep(POLL_SECONDS)


def _waiting_for(states: Sequence[AppState], count: int) -> str:
    failed = [s for s in states if s.is_failed]
    if failed:
        raise DeployFailed("; ".join(f"{s.application}: {s.message}" for s in failed))
    if len(states) < count:
        return "waiting for Ray Serve"
    waiting = [f"{s.application} ({s.message})" for s in states if not s.is_running]
    return "waiting for " + ", ".join(waiting) if waiting else ""
