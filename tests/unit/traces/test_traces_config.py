from pathlib import Path

import pytest

from penstock.core.config import ConfigError
from penstock.traces.config import read_config


def test_defaults():
    config = read_config({"PENSTOCK_TRACES_STORE": "/s"})

    assert (Path("/s"), "127.0.0.1:7418", 5_000) == (config.store, config.listen, config.keep)
    assert config.token is None


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        read_config({"PENSTOCK_TRACES_KEEP": "-1", "OTEL_EXPORTER_OTLP_ENDPOINT": "host:4317"})

    names = [line.split(":")[0] for line in str(caught.value).splitlines()]
    expected = ["PENSTOCK_TRACES_STORE", "PENSTOCK_TRACES_KEEP", "OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert expected == names


def test_no_secret_is_printed():
    config = read_config(
        {
            "PENSTOCK_TRACES_STORE": "/s",
            "PENSTOCK_TRACES_TOKEN": "hidden",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:4317",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hidden",
        }
    )

    assert "http://host:4317" in repr(config)
    assert "hidden" not in repr(config)
