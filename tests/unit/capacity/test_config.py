import pytest

from penstock.capacity.config import read
from penstock.core.config import ConfigError

FULL = {
    "PENSTOCK_CONFIG": "/etc/penstock.yaml",
    "PENSTOCK_SERVICE_TOKEN": "service-secret",
    "PENSTOCK_ROUTER_TOKEN": "router-secret",
    "RAY_AUTH_TOKEN": "ray-secret",
}


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(read(FULL))


def test_every_missing_variable_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read({})
    assert all(name in str(caught.value) for name in FULL)
