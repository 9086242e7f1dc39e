from pathlib import Path

import pytest

from penstock.core.config import ConfigError
from penstock.traces.config import read_config
from penstock.traces.forward import parse_headers


def test_defaults():
    config = read_config({"PENSTOCK_TRACES_STORE": "/s"})

    assert (Path("/s"), "127.0.0.1:7418", 5_000) == (config.store, config.listen, config.keep)
    assert config.token is None


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        read_config({"PENSTOCK_TRACES_KEEP": "-1", "PENSTOCK_TRACES_FORWARD": "host:4317"})

    names = [line.split(":")[0] for line in str(caught.value).splitlines()]
    assert ["PENSTOCK_TRACES_STORE", "PENSTOCK_TRACES_KEEP", "PENSTOCK_TRACES_FORWARD"] == names


def test_the_token_is_not_printed():
    config = read_config({"PENSTOCK_TRACES_STORE": "/s", "PENSTOCK_TRACES_TOKEN": "hidden"})

    assert "hidden" not in repr(config)


def test_headers_are_read_as_opentelemetry_writes_them():
    expected = {"authorization": "Bearer x", "a": "b=c"}

    assert expected == parse_headers("Authorization=Bearer%20x, a=b=c,,nonsense")
