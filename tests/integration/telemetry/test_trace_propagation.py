"""One trace over processes: here the router's part, there a service; they meet in the receiver."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from penstock.core import semconv, telemetry
from penstock.core.telemetry import from_metadata, setup, to_metadata
from penstock.quota.v1 import quota_pb2, quota_pb2_grpc
from penstock.traces import load
from support.tcp import free_port
from support.traces_process import receiver, serving

SERVICE = Path(__file__).parents[2] / "support" / "traced_service.py"


@pytest.fixture(autouse=True)
def restored_process(monkeypatch):
    monkeypatch.setattr(telemetry, "_process", telemetry._process)


@asynccontextmanager
async def traced_service(endpoint: str) -> AsyncIterator[str]:
    """A quota service without a ledger: only its traces are real."""
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "LISTEN": address}
    running = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVICE), env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        await serving(address, running)
        yield address
        running.terminate()
        async with asyncio.timeout(15):
            assert 0 == await running.wait()
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


async def test_metadata_and_batched_operations_carry_the_trace(tmp_path, monkeypatch):
    async with receiver(tmp_path) as collector:
        endpoint = f"http://{collector}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        handle = setup("router")
        async with traced_service(endpoint) as address:
            async with grpc.aio.insecure_channel(address) as channel:
                stub = quota_pb2_grpc.QuotaServiceStub(channel)
                sent = await send(handle, stub)
            await handle.aclose()
        traces = {name: load(tmp_path, name) for name in sent}

    for name in ("req_unary", "req_batch_1", "req_batch_2"):
        assert sent[name] == traces[name].trace_id
    unary = {s.name: s for s in traces["req_unary"].spans}
    assert ["chat", "penstock.quota.v1.QuotaService/Settle", "settle"] == sorted(unary)
    served = unary["penstock.quota.v1.QuotaService/Settle"]
    assert unary["settle"].span_id == served.parent_span_id
    assert "penstock-quota" == served.service
    for name in ("req_batch_1", "req_batch_2"):
        spans = {s.name: s for s in traces[name].spans}
        assert {"chat", "settle", "quota settle"} == set(spans)
        assert spans["settle"].span_id == spans["quota settle"].parent_span_id
        assert name == spans["quota settle"].attributes[semconv.RESERVATION_ID]
    assert ["chat"] == [s.name for s in traces["req_plain"].spans]


async def send(handle, stub) -> dict[str, str]:
    """One unary call, then one batch of three operations, of which the last is not detailed."""
    traces = {
        name: handle.request("chat", {semconv.REQUEST_ID: name})
        for name in ("req_unary", "req_batch_1", "req_batch_2", "req_plain")
    }
    traces["req_plain"].detailed = False
    with traces["req_unary"].child("settle") as span:
        call = stub.Settle(
            quota_pb2.SettleRequest(reservation_id="req_unary"),
            metadata=to_metadata(span.traceparent),
        )
        await call
        # What the service's own calls would carry: the same trace, its own span.
        onward = from_metadata(await call.trailing_metadata())
        assert traces["req_unary"].trace_id == onward.split("-")[1]
        assert span.traceparent != onward
    batched = list(traces.items())[1:]
    children = {name: trace.child("settle") for name, trace in batched}
    call = stub.Batch()
    await call.write(
        quota_pb2.BatchRequest(
            operations=[
                quota_pb2.Operation(
                    operation_id=number,
                    traceparent=children[name].traceparent,
                    settle=quota_pb2.SettleRequest(reservation_id=name),
                )
                for number, (name, _) in enumerate(batched)
            ]
        )
    )
    await call.read()
    await call.done_writing()
    for child in children.values():
        child.end()
    for trace in traces.values():
        trace.finish()
    return {name: trace.trace_id for name, trace in traces.items()}
