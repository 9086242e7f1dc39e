"""OpenTelemetry's variables as its specification reads them."""

import logging

import pytest

from penstock.core.config import ConfigError
from penstock.core.telemetry_collector import SILENCE_SECONDS, Reach, collector

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
OF_TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
HTTP = {PROTOCOL: "http/protobuf"}


def read(**variables):
    return collector({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in variables.items()})


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://host:4317", "OTEL_SDK_DISABLED": "TRUE"},
        {ENDPOINT: "http://host:4317", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nowhere(environment):
    assert collector(environment) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({ENDPOINT: "http://host:4317"}, "http://host:4317 by grpc"),
        ({ENDPOINT: "http://host:4318", **HTTP}, "http://host:4318/v1/traces by http/protobuf"),
        ({ENDPOINT: "https://host/a/", **HTTP}, "https://host/a/v1/traces by http/protobuf"),
        ({OF_TRACES: "https://host/a", **HTTP}, "https://host/a by http/protobuf"),
        ({ENDPOINT: "http://a:1", OF_TRACES: "http://b:2"}, "http://b:2 by grpc"),
        ({ENDPOINT: "http://a:1", OF_TRACES: ""}, "http://a:1 by grpc"),
        ({ENDPOINT: "http://a:1", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", **HTTP},
         "http://a:1 by grpc"),
    ],
)  # fmt: skip
def test_where_and_by_which_protocol(environment, expected):
    assert expected == str(collector(environment))


def test_headers_are_percent_encoded_or_not():
    found = read(ENDPOINT="http://a:1", HEADERS="Authorization=Bearer%20x, api-key=b=c,,nonsense")

    assert {"authorization": "Bearer x", "api-key": "b=c"} == found.headers


def test_a_time_out_is_in_milliseconds():
    assert 0.25 == read(ENDPOINT="http://a:1", TIMEOUT="250").timeout_seconds
    assert 10 == read(ENDPOINT="http://a:1").timeout_seconds


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ENDPOINT": "localhost:4317"},
         ("OTEL_EXPORTER_OTLP_ENDPOINT: 'localhost:4317' has no scheme: write"
         " http://localhost:4317, or https://localhost:4317 where it has TLS")),
        ({"TRACES_ENDPOINT": "localhost:4317"},
         ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'localhost:4317' has no scheme: write"
         " http://localhost:4317, or https://localhost:4317 where it has TLS")),
        ({"ENDPOINT": "unix:///socket"},
         ("OTEL_EXPORTER_OTLP_ENDPOINT: 'unix:///socket' is no address: write http://host:port, or"
         " https://host:port")),
        ({"ENDPOINT": "http://[::1"},
         ("OTEL_EXPORTER_OTLP_ENDPOINT: 'http://[::1' is no address: write http://host:port, or"
         " https://host:port")),
        ({"ENDPOINT": "http://me:secret@host:1"},
         ("OTEL_EXPORTER_OTLP_ENDPOINT: holds a user or password: put them into"
         " OTEL_EXPORTER_OTLP_HEADERS, as authorization=Basic%20…")),
        ({"ENDPOINT": "http://a:1", "PROTOCOL": "http/json"},
         ("OTEL_EXPORTER_OTLP_PROTOCOL: 'http/json' is not spoken here: set it to grpc or"
         " http/protobuf")),
        ({"ENDPOINT": "http://a:1", "TIMEOUT": "10s"},
         "OTEL_EXPORTER_OTLP_TIMEOUT: '10s' is no number of milliseconds from 1 to 600000"),
        ({"ENDPOINT": "http://a:1", "COMPRESSION": "br"},
         "OTEL_EXPORTER_OTLP_COMPRESSION: 'br' is not known here: set it to gzip or none"),
        ({"ENDPOINT": "https://a:1", "CERTIFICATE": "/nowhere.pem"},
         ("OTEL_EXPORTER_OTLP_CERTIFICATE: '/nowhere.pem' cannot be read: No such file or"
         " directory")),
    ],
)  # fmt: skip
def test_a_fault_names_the_variable_that_was_set(variables, expected):
    with pytest.raises(ConfigError) as caught:
        read(**variables)

    assert [expected] == caught.value.faults


def test_a_file_that_is_no_certificate(tmp_path):
    (tmp_path / "a.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_CERTIFICATE: no certificate in PEM"):
        read(ENDPOINT="https://a:1", CERTIFICATE=str(tmp_path / "a.pem"))


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        read(ENDPOINT="a:1", PROTOCOL="x", TIMEOUT="x", COMPRESSION="x", CERTIFICATE="/x")

    assert 5 == len(caught.value.faults)


def test_a_collector_that_comes_and_goes_is_told_of_in_few_lines(caplog):
    caplog.set_level(logging.INFO)
    now = [0.0]
    reach = Reach(logging.getLogger("test"), "there", monotonic=lambda: now[0])
    for _ in range(100):
        reach.failed("refused", lost=2)
        assert "traces do not reach there (refused)" in reach.trouble
        reach.worked()
        assert "" == reach.trouble
    now[0] = SILENCE_SECONDS
    reach.failed("refused", lost=2)

    began, ended, again = (record.getMessage() for record in caplog.records)
    assert 202 == reach.lost
    assert began == again
    assert "traces reach there again; 2 were lost" == ended
