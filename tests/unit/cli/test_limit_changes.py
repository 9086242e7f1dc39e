"""What is said after `budget set` and `limit set`."""

import pytest

from penstock.cli.limit_changes import changes
from penstock.quota.v1 import admin_pb2

USD = 10**9


def budget(**fields: object) -> admin_pb2.Budget:
    told = {"id": "budget_3", "name": "month", "time_zone": "UTC", "limit_nano_usd": 5 * USD}
    return admin_pb2.Budget(**{**told, "soft_percents": [50, 80], **fields})


def scope(*providers: str) -> admin_pb2.Scope:
    return admin_pb2.Scope(providers=providers)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({}, "nothing changed"),
        ({"posted_nano_usd": 7}, "nothing changed"),
        ({"limit_nano_usd": 500 * USD}, "changed: limit was 500.00 USD"),
        ({"limit_nano_usd": 0, "unlimited": True}, "changed: limit was unlimited"),
        ({"time_zone": "Europe/Berlin"}, "changed: zone was Europe/Berlin"),
        ({"soft_percents": [80, 95]}, "changed: soft was 80,95"),
        ({"scope": scope("openai", "local")}, "changed: scope was local, openai"),
        ({"closed": True}, "changed: state was closed"),
        (
            {"limit_nano_usd": 500 * USD, "time_zone": "Europe/Berlin"},
            "changed: limit was 500.00 USD, zone was Europe/Berlin",
        ),
    ],
)
def test_each_changed_field_is_told_as_it_was(before: dict[str, object], said: str) -> None:
    assert [said] == changes([budget(before=budget(**before))])


def test_a_scope_that_was_wide_or_in_another_order() -> None:
    now = scope("local", "openai")
    assert ["changed: scope was everything"] == changes([budget(scope=now, before=budget())])
    before = budget(scope=scope("openai", "local"))
    assert ["nothing changed"] == changes([budget(scope=now, before=before)])


def test_a_new_one_has_no_before() -> None:
    assert ["created"] == changes([budget()])


def test_a_rate_limits_zone_is_told_as_a_budgets_is() -> None:
    before = admin_pb2.RateLimit(limit=6, time_zone="UTC")
    made = admin_pb2.RateLimit(limit=6, time_zone="Europe/Berlin", before=before)
    assert ["changed: zone was UTC"] == changes([made])


def test_each_of_several_is_told_by_its_name() -> None:
    before = admin_pb2.RateLimit(limit=9)
    new = admin_pb2.RateLimit(name="l3", limit=6)
    changed = admin_pb2.RateLimit(name="l4", limit=6, before=before)
    assert ["l3: created", "l4: changed: limit was 9"] == changes([new, changed])
