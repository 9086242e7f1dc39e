"""Several rate limits in one command."""

import pytest

from penstock.cli.commands_limit import _demand_different, rate
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.quota.v1 import admin_pb2

REQUESTS, TOKENS = admin_pb2.RateLimit.UNIT_REQUESTS, admin_pb2.RateLimit.UNIT_TOKENS


def test_the_same_unit_and_window_twice_is_refused() -> None:
    rates = [
        rate("--requests", "0/minute", REQUESTS),
        rate("--tokens", "5/minute", TOKENS),
        rate("--requests", "6/minute", REQUESTS),
    ]
    with pytest.raises(CliError, match="--requests is given twice for one minute") as refused:
        _demand_different(rates)
    assert BAD_USAGE == refused.value.code


def test_other_windows_and_units_go_together() -> None:
    _demand_different(
        [
            rate("--requests", "1/minute", REQUESTS),
            rate("--requests", "9/day", REQUESTS),
            rate("--tokens", "1/minute", TOKENS),
        ]
    )
