"""`python -m penstock.router` as it is run: ready, answering, drained, and clear about faults."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from support.capacity_server import FakeCapacity
from support.chat import CATALOGUE_YAML
from support.quota_server import KEY, TOKEN, FakeQuota
from support.tcp import free_port
from support.wait import until

START_SECONDS = 30
"""Importing everything takes two seconds on an idle core; tests share it with others."""


@asynccontextmanager
async def running(environment: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.router",
        env={"PATH": os.environ["PATH"], **environment},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def quota() -> AsyncIterator[FakeQuota]:
    found = FakeQuota()
    found.put()
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def environment(quota: FakeQuota, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    capacity = FakeCapacity()
    address = await capacity.start(TOKEN)
    path = tmp_path / "penstock.yaml"
    path.write_text(CATALOGUE_YAML)
    yield {
        "PENSTOCK_CONFIG": str(path),
        "PENSTOCK_SERVICE_TOKEN": TOKEN,
        "PENSTOCK_ROUTER_TOKEN": "router-token",
        "PENSTOCK_ROUTER_GRPC_LISTEN": f"127.0.0.1:{free_port()}",
        "PENSTOCK_ROUTER_HTTP_LISTEN": f"127.0.0.1:{free_port()}",
        "PENSTOCK_ROUTER_METRICS_LISTEN": f"127.0.0.1:{free_port()}",
        "PENSTOCK_QUOTA_ADDRESS": quota._listen,
        "PENSTOCK_CACHE_ADDRESS": f"127.0.0.1:{free_port()}",
        "PENSTOCK_CAPACITY_ADDRESS": address,
    }
    await capacity.stop()


def write(environment: Mapping[str, str], catalogue: str) -> None:
    Path(environment["PENSTOCK_CONFIG"]).write_text(catalogue)


async def ready(client: httpx.AsyncClient) -> None:
    async def says_so() -> bool:
        try:
            return (await client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    await until(says_so, START_SECONDS)


async def test_it_gets_ready_answers_reloads_and_drains(environment: dict[str, str]) -> None:
    url = f"http://{environment['PENSTOCK_ROUTER_HTTP_LISTEN']}"
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        running(environment) as process,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        await ready(client)
        listed = (await client.get("/v1/models")).json()["data"]
        # The provider has no key in this environment: its models are not offered.
        assert ["auto", "own", "local/small"] == [model["id"] for model in listed]
        refused = await client.post(
            "/v1/chat/completions",
            json={"model": "own", "messages": [{"role": "user", "content": "hi"}]},
            headers={"x-penstock-timeout-ms": "900"},
        )
        # No replica is there: nothing answers, and it says so.
        assert refused.status_code in (429, 503, 504)
        metrics = await client.get(
            f"http://{environment['PENSTOCK_ROUTER_METRICS_LISTEN']}/metrics"
        )
        assert "penstock_requests_total{" in metrics.text
        # This quota service knows keys and nothing else: the reserve had no answer.
        assert "penstock_ledger_unavailable_total 1.0" in metrics.text
        for name in ("ledger_refused_total", "ledger_dropped_total", "limit_waiting"):
            assert f"penstock_{name} 0.0" in metrics.text
        assert 404 == (await client.get("/metrics")).status_code
        write(environment, CATALOGUE_YAML.replace("own:", "mine:"))

        async def reloaded() -> bool:
            return "mine" in (await client.get("/v1/models")).text

        await until(reloaded)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert 0 == await process.wait()
        log = (await process.stderr.read()).decode()
    assert "configuration reloaded" in log
    assert "draining" in log
    assert "Traceback" not in log
    for secret in (TOKEN, "router-token", KEY):
        assert secret not in log


async def test_it_is_not_ready_before_quota_has_spoken(
    quota: FakeQuota, environment: dict[str, str]
) -> None:
    quota.beats = False
    url = f"http://{environment['PENSTOCK_ROUTER_HTTP_LISTEN']}"
    async with running(environment), httpx.AsyncClient(base_url=url) as client:
        async with asyncio.timeout(START_SECONDS):
            await quota.watched.wait()

        async def waits_for_quota_alone() -> bool:
            return ["quota"] == (await client.get("/readyz")).json()["waiting_for"]

        await until(waits_for_quota_alone, START_SECONDS)
        assert 200 == (await client.get("/healthz")).status_code
        quota.beat()
        await ready(client)


@pytest.mark.parametrize("which", ["GRPC", "HTTP", "METRICS"])
async def test_port_in_use_is_a_clear_line_and_no_hang(
    environment: dict[str, str], which: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        environment[f"PENSTOCK_ROUTER_{which}_LISTEN"] = address
        async with running(environment) as process, asyncio.timeout(START_SECONDS):
            log = (await process.stderr.read()).decode()
            assert 1 == await process.wait()
    assert f"cannot listen on {address}" in log
    assert "Traceback" not in log


async def test_faults_of_the_environment_are_told_together() -> None:
    async with running({"PENSTOCK_QUOTA_ADDRESS": "nowhere"}) as process:
        async with asyncio.timeout(START_SECONDS):
            log = (await process.stderr.read()).decode()
            assert 1 == await process.wait()
    for name in ("CONFIG", "SERVICE_TOKEN", "ROUTER_TOKEN", "QUOTA_ADDRESS"):
        assert f"PENSTOCK_{name}" in log


async def test_faulty_catalogue_is_told_by_line(environment: dict[str, str]) -> None:
    write(environment, "version: 2\nfoo: 1\n")
    async with running(environment) as process, asyncio.timeout(START_SECONDS):
        log = (await process.stderr.read()).decode()
        assert 1 == await process.wait()
    assert "penstock.yaml:1" in log
    assert "penstock.yaml:2" in log
