from base64 import b64encode
from datetime import timedelta

import pytest

from penstock.quota.alerts.config import Webhook, read_alerts_config

SECRET = "x" * 24


def _faults(**environment: str) -> list[str]:
    _, faults = read_alerts_config(
        {f"PENSTOCK_ALERTS_{name}": value for name, value in environment.items()}
    )
    return faults


def test_nothing_set_means_nobody_is_told() -> None:
    config, faults = read_alerts_config({})
    assert ([], (), (), timedelta(hours=24)) == (
        faults, config.webhooks, config.secrets, config.suspense_age,
    )  # fmt: skip


def test_addresses_are_separated_by_commas_and_white_space_and_have_a_shape() -> None:
    config, faults = read_alerts_config(
        {
            "PENSTOCK_ALERTS_WEBHOOKS": "https://a.example/x,\n slack+https://b.example:8443/y "
            "https://a.example/x",
            "PENSTOCK_ALERTS_SECRET": SECRET,
            "PENSTOCK_ALERTS_SUSPENSE_HOURS": "6",
        }
    )
    assert [] == faults
    assert (
        Webhook("https://a.example/x", "generic", "a.example"),
        Webhook("https://b.example:8443/y", "slack", "b.example:8443"),
    ) == config.webhooks
    assert timedelta(hours=6) == config.suspense_age


def test_a_secret_is_plain_or_standard_and_two_overlap() -> None:
    standard = "whsec_" + b64encode(b"y" * 32).decode()
    config, faults = read_alerts_config({"PENSTOCK_ALERTS_SECRET": f"{standard},{SECRET}"})
    assert ([], (b"y" * 32, b"x" * 24)) == (faults, config.secrets)


def test_what_is_shown_of_it_holds_no_secret() -> None:
    config, _ = read_alerts_config(
        {
            "PENSTOCK_ALERTS_WEBHOOKS": "https://user:word@a.example/path?token=1",
            "PENSTOCK_ALERTS_SECRET": SECRET,
        }
    )
    assert "a.example" in repr(config)
    for hidden in ("user", "word", "path", "token", SECRET):
        assert hidden not in repr(config)


@pytest.mark.parametrize(
    "address",
    ["a.example/x", "ftp://a.example", "https:///x", "https://a.example:port/", "slack+a.example"],
)
def test_a_faulty_address_is_told_by_its_number_alone(address: str) -> None:
    (fault,) = _faults(WEBHOOKS=f"slack+https://ok.example/z {address}")
    assert fault.startswith("PENSTOCK_ALERTS_WEBHOOKS: number 2 ")
    assert address not in fault


@pytest.mark.parametrize(
    "secret", ["short", "whsec_" + b64encode(b"short").decode(), "whsec_no base64 at all!!"]
)
def test_a_secret_that_can_be_guessed_is_refused(secret: str) -> None:
    (fault,) = _faults(SECRET=secret)
    assert fault.startswith("PENSTOCK_ALERTS_SECRET: takes at least 24 bytes")


def test_a_generic_webhook_needs_a_secret_and_slack_does_not() -> None:
    (fault,) = _faults(WEBHOOKS="https://a.example/x")
    assert fault.startswith("PENSTOCK_ALERTS_SECRET: set it")
    assert [] == _faults(WEBHOOKS="slack+https://a.example/x")


@pytest.mark.parametrize("hours", ["0", "721", "-1", "1.5", "a day"])
def test_hours_out_of_range_are_refused(hours: str) -> None:
    assert ["PENSTOCK_ALERTS_SUSPENSE_HOURS: takes 1 to 720"] == _faults(SUSPENSE_HOURS=hours)


def test_too_many_addresses_are_refused() -> None:
    faults = _faults(WEBHOOKS=" ".join(f"slack+https://{n}.example/" for n in range(17)))
    assert ["PENSTOCK_ALERTS_WEBHOOKS: takes at most 16 addresses"] == faults
