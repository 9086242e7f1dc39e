"""Budgets and rate limits as people write them."""

import pytest

from penstock.cli.errors import CliError
from penstock.cli.limit_arguments import meant, new_name, percents, scope, setting_id
from penstock.cli.names import Named
from penstock.quota.v1 import admin_pb2

ALL = admin_pb2.Budget(id="budget_1", name="month")
OPENAI = admin_pb2.Budget(
    id="budget_2", name="openai-only", scope=admin_pb2.Scope(providers=["openai"])
)
CLOSED = admin_pb2.Budget(id="budget_3", name="old", closed=True)


def test_without_a_name_it_is_the_open_one_of_the_same_scope() -> None:
    there = [CLOSED, ALL, OPENAI]
    assert ALL == meant(there, "", None, "budget")
    assert OPENAI == meant(there, "", scope(["openai"], None, None), "budget")
    assert meant(there, "", scope(["azure"], None, None), "budget") is None
    assert CLOSED == meant(there, "old", None, "budget")


def test_two_of_the_same_scope_want_a_name() -> None:
    twin = admin_pb2.Budget(id="budget_4", name="twin")
    with pytest.raises(CliError, match=r"month \(budget_1\), twin \(budget_4\); say which"):
        meant([ALL, twin], "", None, "budget")


def test_a_new_name_tells_what_it_is_for() -> None:
    narrow = scope(["openai"], ["gpt-4o*"], ["job=Nightly"])
    assert "day-openai-gpt-4o-job-nightly" == new_name("day", narrow, ())
    assert "day" == new_name("day", None, {"month"})
    assert 64 >= len(new_name("day", scope(["x" * 100], None, None), ()))
    assert "day-2" == new_name("day", None, {"day"})


@pytest.mark.parametrize("text", ["", "0,50", "50,50", "80,50", "101", "1.5", "-1", "50,", "a"])
def test_per_cents_are_ascending_of_1_to_100(text: str) -> None:
    with pytest.raises(CliError, match="--soft"):
        percents(text)


def test_per_cents_are_at_most_eight() -> None:
    assert [50, 80, 100] == percents("50,80,100")
    with pytest.raises(CliError, match="at most 8"):
        percents("1,2,3,4,5,6,7,8,9")


def test_an_id_or_a_name_means_one() -> None:
    other = admin_pb2.Budget(id="budget_5", name="month", account_id="org_1")
    assert "budget_1" == setting_id([ALL, other], "budget_1", "budget")
    known = [Named("org", "org_1", "acme")]
    with pytest.raises(CliError, match=r"budget_5 \(of org:acme\); write its id, or say --account"):
        setting_id([ALL, other], "month", "budget", known)
    with pytest.raises(CliError, match=r"no budget 'nothing'; there are: month \(budget_1\)$"):
        setting_id([ALL, CLOSED], "nothing", "budget")
