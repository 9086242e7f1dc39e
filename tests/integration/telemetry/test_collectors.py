"""Traces reach a collector that is not ours, in another process, by either protocol of OTLP:
from a service alone, and by way of the traces' keeper, as under `make up`.
"""

import asyncio
import datetime as dt
import ipaddress
import logging
import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from penstock.core import semconv, telemetry
from penstock.core.telemetry import setup
from penstock.traces import load, trouble
from support.otlp_collector import GRPC, HTTP, collecting
from support.tcp import free_port
from support.traces_process import process, receiver
from support.wait import until

PROTOCOLS = pytest.mark.parametrize("protocol", [GRPC, HTTP])

WAIT_SECONDS = 20
REQUEST = "req_1"
COST = 2**62 + 1
"""More than a double holds."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(telemetry, "_process", telemetry._process)


async def tell_one(monkeypatch, request_id=REQUEST, **variables):
    """One request of a service whose environment has these variables; its telemetry, closed."""
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        handle = setup("router")
    trace = handle.request("chat auto", {semconv.REQUEST_ID: request_id})
    trace.finish({semconv.COST_NANO_USD: COST})
    await handle.aclose()
    return handle


async def kept_cost(folder: Path) -> int:
    found = await asyncio.to_thread(load, folder, REQUEST, wait_seconds=WAIT_SECONDS)
    return found.spans[0].attributes[semconv.COST_NANO_USD]


def self_signed(path: Path) -> dict[str, str]:
    """A certificate of localhost that no authority knows, and its key: paths of PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(pem))
    path.with_suffix(".key").write_bytes(key.private_bytes(pem, *plain))
    return {"certificate": str(path), "key": str(path.with_suffix(".key"))}


def variables_of(protocol, endpoint, **more):
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20theirs",
        **more,
    }


@PROTOCOLS
@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_a_service_tells_a_collector_itself(tmp_path, monkeypatch, protocol, compression):
    async with collecting(protocol, tmp_path, token="theirs") as endpoint:
        more = {"OTEL_EXPORTER_OTLP_COMPRESSION": compression}
        await tell_one(monkeypatch, **variables_of(protocol, endpoint, **more))
        assert COST == await kept_cost(tmp_path)


@PROTOCOLS
@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_the_keeper_passes_all_on(tmp_path, monkeypatch, protocol, compression):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    async with collecting(protocol, theirs, token="theirs") as endpoint:
        more = {"OTEL_EXPORTER_OTLP_COMPRESSION": compression}
        async with receiver(ours, **variables_of(protocol, endpoint, **more)) as address:
            await tell_one(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}")
            assert COST == await kept_cost(theirs)
            assert load(ours, REQUEST) == load(theirs, REQUEST)
            assert "" == trouble(ours)


@PROTOCOLS
async def test_a_collector_with_tls_is_known_by_its_certificate(tmp_path, monkeypatch, protocol):
    ours, direct, theirs = tmp_path / "ours", tmp_path / "direct", tmp_path / "theirs"
    pair, others = self_signed(tmp_path / "theirs.pem"), self_signed(tmp_path / "others.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", others["certificate"])
    known = {"OTEL_EXPORTER_OTLP_CERTIFICATE": pair["certificate"]}
    async with collecting(protocol, direct, **pair) as endpoint:
        await tell_one(monkeypatch, **variables_of(protocol, endpoint, **known))
        assert COST == await kept_cost(direct)
    async with (
        collecting(protocol, theirs, **pair) as endpoint,
        receiver(ours, **variables_of(protocol, endpoint, **known)) as address,
    ):
        await tell_one(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}")
        assert COST == await kept_cost(theirs)


@PROTOCOLS
async def test_the_variables_of_traces_win(tmp_path, monkeypatch, protocol):
    other = HTTP if protocol == GRPC else GRPC
    async with collecting(protocol, tmp_path, token="theirs") as endpoint:
        path = "/v1/traces" if protocol == HTTP else ""
        await tell_one(
            monkeypatch,
            OTEL_EXPORTER_OTLP_ENDPOINT="http://localhost:1",
            OTEL_EXPORTER_OTLP_PROTOCOL=other,
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20wrong",
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint + path,
            OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=protocol,
            OTEL_EXPORTER_OTLP_TRACES_HEADERS="authorization=Bearer%20theirs",
        )
        assert COST == await kept_cost(tmp_path)


@PROTOCOLS
async def test_a_collector_of_the_other_protocol_is_told_once(
    tmp_path, monkeypatch, protocol, caplog
):
    caplog.set_level(logging.INFO)
    theirs = HTTP if protocol == GRPC else GRPC
    async with collecting(theirs, tmp_path) as endpoint:
        more = {"OTEL_EXPORTER_OTLP_TIMEOUT": "500"}
        handle = await tell_one(monkeypatch, **variables_of(protocol, endpoint, **more))

    assert 1 == handle.export.exporter.lost
    (line,) = (record.getMessage() for record in caplog.records)
    assert "traces do not reach" in line
    assert f" by {protocol} (" in line
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in line


@PROTOCOLS
async def test_a_collector_that_refuses_the_keeper_is_told(tmp_path, monkeypatch, protocol):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    refusal = {GRPC: "(UNAUTHENTICATED: no bearer of ours)", HTTP: "(HTTP 401)"}[protocol]
    async with (
        collecting(protocol, theirs, token="another") as endpoint,
        receiver(ours, **variables_of(protocol, endpoint)) as address,
    ):
        await tell_one(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}")
        await until(lambda: refusal in trouble(ours))


@PROTOCOLS
async def test_a_keepers_collector_that_is_away_is_told_until_it_comes(
    tmp_path, monkeypatch, protocol
):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    port = free_port()
    variables = variables_of(protocol, f"http://localhost:{port}")
    async with receiver(ours, **variables) as address:
        here = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address}"}
        await tell_one(monkeypatch, "req_lost", **here)
        assert load(ours, "req_lost") is not None
        await until(lambda: "traces do not reach" in trouble(ours))
        assert f"http://localhost:{port}" in trouble(ours)

        async with collecting(protocol, theirs, port=port), asyncio.timeout(WAIT_SECONDS):
            while trouble(ours):
                await tell_one(monkeypatch, **here)
            assert COST == await kept_cost(theirs)


async def test_a_faulty_endpoint_ends_the_keeper_by_the_name_that_the_user_set(tmp_path):
    environment = {
        "PENSTOCK_TRACES_STORE": str(tmp_path),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317",
    }
    async with process("penstock.traces", environment) as running:
        _, stderr = await running.communicate()

    expected = (
        "penstock traces: OTEL_EXPORTER_OTLP_ENDPOINT: 'localhost:4317' has no scheme: write "
        "http://localhost:4317, or https://localhost:4317 where it has TLS\n"
    )
    assert (2, expected) == (running.returncode, stderr.decode())
