import pytest

from penstock.core.config import ConfigError
from penstock.quota.config import read_config

GOOD = {
    "PENSTOCK_QUOTA_DSN": "postgresql://ledger:secret@127.0.0.1/ledger",
    "PENSTOCK_SERVICE_TOKEN": "for-routers",
    "PENSTOCK_ADMIN_TOKEN": "for-operators",
}


def test_secrets_are_not_in_its_text() -> None:
    text = repr(read_config(GOOD))

    assert not [secret for secret in ("secret", *GOOD.values()) if secret in text]
    assert "127.0.0.1:7411" in text


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        read_config({})

    assert ["PENSTOCK_QUOTA_DSN", "PENSTOCK_SERVICE_TOKEN", "PENSTOCK_ADMIN_TOKEN"] == [
        line.split(":")[0] for line in str(raised.value).splitlines()
    ]


def test_one_token_for_both_ports_is_refused() -> None:
    with pytest.raises(ConfigError, match="must differ"):
        read_config({**GOOD, "PENSTOCK_ADMIN_TOKEN": "for-routers"})


def test_a_dsn_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="PENSTOCK_QUOTA_DSN"):
        read_config({**GOOD, "PENSTOCK_QUOTA_DSN": "sqlite://"})
