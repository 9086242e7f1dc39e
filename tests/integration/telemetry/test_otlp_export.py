"""Against the real OTLP receiver, in another process."""

import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from penstock.core import semconv, telemetry, telemetry_export
from penstock.core.errors import BudgetExceeded
from penstock.core.telemetry import setup
from penstock.traces import load
from support.tcp import free_port
from support.traces_process import process, receiver, serving

WAIT_SECONDS = 10


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(telemetry, "_process", telemetry._process)


def answer(handle, request_id, cost_nano_usd=1_500_000):
    trace = handle.request("chat auto", {semconv.REQUEST_ID: request_id})
    with trace.child("attempt openai") as attempt:
        attempt.set(
            semconv.charged(cost_nano_usd=cost_nano_usd, prompt_tokens=1, completion_tokens=2)
        )
    trace.finish({semconv.COST_NANO_USD: cost_nano_usd})
    return trace


async def found(folder, wanted):
    return await asyncio.to_thread(load, folder, wanted, wait_seconds=WAIT_SECONDS)


async def test_a_request_is_found_by_its_id_with_its_exact_cost(tmp_path, monkeypatch):
    cost = 2**62 + 1
    async with receiver(tmp_path) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        handle = setup("router")
        trace = answer(handle, "req_1", cost)
        kept = await found(tmp_path, "req_1")
        await handle.aclose()

    root, attempt = kept.spans
    assert trace.trace_id == kept.trace_id
    assert ("penstock-router", "attempt openai") == (root.service, attempt.name)
    assert cost == root.attributes[semconv.COST_NANO_USD]
    assert cost == attempt.attributes[semconv.ATTEMPT_COST_NANO_USD]
    assert root.span_id == attempt.parent_span_id


async def test_the_last_spans_are_sent_at_shutdown(tmp_path, monkeypatch):
    async with receiver(tmp_path) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
        handle = setup("router")
        answer(handle, "req_last")
        await handle.aclose()

        assert load(tmp_path, "req_last") is not None


async def test_thousands_of_requests_sum_to_the_nano(tmp_path, monkeypatch):
    costs = {f"req_{n}": 1_000_003 * n for n in range(1, 2_001)}
    async with receiver(tmp_path) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        handle = setup("router")
        for request_id, cost in costs.items():
            answer(handle, request_id, cost)
        await handle.aclose(timeout_seconds=20)
        told = [load(tmp_path, request_id) for request_id in costs]

    spans = [span for trace in told for span in trace.spans]
    assert sum(costs.values()) == sum(s.attributes.get(semconv.COST_NANO_USD, 0) for s in spans)
    detailed = [s for s in spans if semconv.ATTEMPT_COST_NANO_USD in s.attributes]
    assert 20 <= len(detailed) < 200


async def test_a_token_is_demanded_where_one_is_set(tmp_path, monkeypatch):
    async with receiver(tmp_path, PENSTOCK_TRACES_TOKEN="secret") as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        refused = setup("router")
        answer(refused, "req_refused")
        await refused.aclose()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret")
        taken = setup("router")
        answer(taken, "req_taken")
        await taken.aclose()

        assert 2 == refused.export.exporter.lost
        assert load(tmp_path, "req_taken") is not None
        assert load(tmp_path, "req_refused") is None


async def test_a_collector_that_is_away_costs_no_time_and_two_log_lines(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
    caplog.set_level(logging.INFO)
    handle = setup("router")

    began = time.monotonic()
    for number in range(telemetry_export.QUEUE_MAX + 2_000):
        handle.request("r", {semconv.REQUEST_ID: f"req_{number}"}).finish()
    finishing_seconds = time.monotonic() - began
    began = time.monotonic()
    await handle.aclose(timeout_seconds=1)
    closing_seconds = time.monotonic() - began

    # Far above what 18,000 spans cost, far below one wait for the collector each.
    assert finishing_seconds < 10
    assert closing_seconds < 4
    assert len(caplog.records) <= 2, caplog.text


async def test_a_collector_that_comes_late_gets_what_follows(tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
    handle = setup("router")
    answer(handle, "req_lost")
    assert not await asyncio.to_thread(handle.flush)

    environment = {
        "PENSTOCK_TRACES_STORE": str(tmp_path),
        "PENSTOCK_TRACES_LISTEN": f"127.0.0.1:{port}",
    }
    async with process("penstock.traces", environment) as running:
        await serving(f"127.0.0.1:{port}", running)
        for attempt in range(20):
            answer(handle, f"req_{attempt}")
            lost = handle.export.exporter.lost
            await asyncio.to_thread(handle.flush)
            if handle.export.exporter.lost == lost:
                break
        assert await found(tmp_path, f"req_{attempt}") is not None
        await handle.aclose()


def test_no_endpoint_no_export(monkeypatch):
    assert setup("router").export is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert setup("router").export is None
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert setup("router").export is None


async def test_prompts_are_nowhere_in_the_store(tmp_path, monkeypatch):
    from penstock.core.telemetry_content import prompt
    from penstock.type.v1.chat_pb2 import ROLE_USER, ChatInput, ContentPart, Message

    secret = "the-secret-diary"
    chat = ChatInput(messages=[Message(role=ROLE_USER, content=[ContentPart(text=secret)])])
    async with receiver(tmp_path) as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        handle = setup("router")
        for record_prompts, request_id in ((False, "req_off"), (True, "req_on")):
            trace = handle.request("chat auto", {semconv.REQUEST_ID: request_id})
            trace.set(prompt(chat, record_prompts=record_prompts))
            trace.finish(error=BudgetExceeded("spent"))
        await handle.aclose()
        off, on = load(tmp_path, "req_off"), load(tmp_path, "req_on")

    assert secret not in str(off)
    assert secret in str(on)


async def test_a_port_in_use_or_a_faulty_environment_is_said_and_ends_it(tmp_path):
    async with receiver(tmp_path) as address:
        environment = {
            "PENSTOCK_TRACES_STORE": str(tmp_path / "other"),
            "PENSTOCK_TRACES_LISTEN": address,
        }
        async with process("penstock.traces", environment) as running:
            _, stderr = await running.communicate()
        assert 2 == running.returncode
        assert f"cannot listen on {address}" in stderr.decode()
        assert "Traceback" not in stderr.decode()
    async with process("penstock.traces", {}) as running:
        _, stderr = await running.communicate()
    assert 2 == running.returncode
    assert "PENSTOCK_TRACES_STORE" in stderr.decode()


async def test_killed_it_starts_again_over_the_same_store(tmp_path, monkeypatch):
    port = free_port()
    environment = {
        "PENSTOCK_TRACES_STORE": str(tmp_path),
        "PENSTOCK_TRACES_LISTEN": f"127.0.0.1:{port}",
    }
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    async with process("penstock.traces", environment) as running:
        await serving(f"127.0.0.1:{port}", running)
        handle = setup("router")
        answer(handle, "req_before")
        await handle.aclose()
        running.send_signal(signal.SIGKILL)
        await running.wait()
    async with receiver(tmp_path):
        assert load(Path(tmp_path), "req_before") is not None
