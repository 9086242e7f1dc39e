"""What is said after `budget set` and `limit set`."""

import pytest

from penstock.cli.limit_changes import compared
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
    other = budget(id="budget_4", limit_nano_usd=1)
    _, lines = compared([budget()], [other, budget(**before)])
    assert [said] == lines


def test_a_scope_that_was_wide_or_in_another_order() -> None:
    made = budget(scope=scope("local", "openai"))
    _, lines = compared([made], [budget()])
    assert ["changed: scope was everything"] == lines
    _, lines = compared([made], [budget(scope=scope("openai", "local"))])
    assert ["nothing changed"] == lines


def test_a_new_one_has_no_before() -> None:
    (document,), lines = compared([budget()], [budget(id="budget_4")])
    assert ["created"] == lines
    assert "before" not in document


def test_the_document_has_the_budget_as_it_was() -> None:
    (document,), _ = compared([budget()], [budget(limit_nano_usd=500 * USD)])
    assert (5 * USD, 500 * USD) == (
        document["limit_nano_usd"],
        document["before"]["limit_nano_usd"],
    )


def test_a_rate_limit_in_another_zone_resets_at_another_time() -> None:
    window = admin_pb2.Budget.WINDOW_DAY
    made, before = (admin_pb2.RateLimit(id="limit_3", window=window) for _ in range(2))
    made.resets_at.FromJsonString("2026-11-29T23:00:00Z")
    before.resets_at.FromJsonString("2026-11-30T00:00:00Z")
    _, lines = compared([made], [before], zoned=True)
    assert ["changed: reset was 2026-11-30 00:00 UTC"] == lines
    # The window has ended in between.
    _, lines = compared([made], [before])
    assert ["nothing changed"] == lines
    made.window = before.window = admin_pb2.Budget.WINDOW_MINUTE
    _, lines = compared([made], [before], zoned=True)
    assert ["nothing changed"] == lines


def test_each_of_several_is_told_by_its_name() -> None:
    made = [admin_pb2.RateLimit(id=f"limit_{n}", name=f"l{n}", limit=6) for n in (3, 4)]
    _, lines = compared(made, [admin_pb2.RateLimit(id="limit_4", limit=9)])
    assert ["l3: created", "l4: changed: limit was 9"] == lines
