from pathlib import Path

import pytest

from penstock.core.config import ConfigError
from penstock.router.backends.providers import StandIn
from penstock.router.config import read_config

LEAST = {
    "PENSTOCK_CONFIG": "/etc/penstock.yaml",
    "PENSTOCK_SERVICE_TOKEN": "service-secret",
    "PENSTOCK_ROUTER_TOKEN": "router-secret",
}


def test_least_environment_has_defaults_for_the_rest() -> None:
    config = read_config(LEAST)
    assert Path("/etc/penstock.yaml") == config.catalogue_path
    assert ("127.0.0.1:7070", "127.0.0.1:7080") == (config.grpc_listen, config.http_listen)
    assert (None, None) == (config.metrics_listen, config.stand_in)


def test_every_variable_is_read() -> None:
    config = read_config(
        {
            **LEAST,
            "PENSTOCK_ROUTER_GRPC_LISTEN": "0.0.0.0:1",
            "PENSTOCK_ROUTER_HTTP_LISTEN": "[::]:2",
            "PENSTOCK_ROUTER_METRICS_LISTEN": "127.0.0.1:3",
            "PENSTOCK_QUOTA_ADDRESS": "quota:4",
            "PENSTOCK_CACHE_ADDRESS": "cache:5",
            "PENSTOCK_CAPACITY_ADDRESS": "capacity:6",
            "PENSTOCK_STAND_IN": "openai",
            "PENSTOCK_STAND_IN_URL": "http://stand-in:7/v1",
            "PENSTOCK_STAND_IN_KEY": "sk-secret",
        }
    )
    assert ("0.0.0.0:1", "[::]:2", "127.0.0.1:3", "quota:4", "cache:5", "capacity:6") == (
        config.grpc_listen,
        config.http_listen,
        config.metrics_listen,
        config.quota_address,
        config.cache_address,
        config.capacity_address,
    )
    assert StandIn("openai", "http://stand-in:7/v1", "sk-secret") == config.stand_in


def test_a_stand_in_is_told_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({**LEAST, "PENSTOCK_STAND_IN": "openai"})
    assert ["PENSTOCK_STAND_IN_URL", "PENSTOCK_STAND_IN_KEY"] == [
        fault.partition(":")[0] for fault in caught.value.faults
    ]


@pytest.mark.parametrize("address", ["nowhere", ":80", "host:", "host:http", "host:70000"])
def test_faulty_address_is_named_with_an_example(address: str) -> None:
    with pytest.raises(ConfigError, match=r"PENSTOCK_QUOTA_ADDRESS: .* e\.g\. 127\.0\.0\.1:7411"):
        read_config({**LEAST, "PENSTOCK_QUOTA_ADDRESS": address})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config({"PENSTOCK_ROUTER_METRICS_LISTEN": "x"})
    assert 4 == len(str(caught.value).splitlines())


def test_secrets_are_not_printed() -> None:
    printed = repr(read_config({**LEAST, "OPENAI_API_KEY": "sk-secret"}))
    assert "secret" not in printed
