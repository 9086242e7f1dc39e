"""Accounts as people name them."""

import pytest

from penstock.cli.errors import CliError
from penstock.cli.names import Named, find, levels

KNOWN = [
    Named("org", "org_1", "default"),
    Named("team", "team_2", "default"),
    Named("key", "key_3", "default"),
    Named("key", "key_4", "ci"),
    Named("key", "key_5", "twin"),
    Named("key", "key_6", "twin"),
]


@pytest.mark.parametrize(
    ("text", "identity"),
    [("key_3", "key_3"), ("team:default", "team_2"), ("ci", "key_4"), ("key:ci", "key_4")],
)
def test_a_name_means_one(text: str, identity: str) -> None:
    assert identity == find(KNOWN, text).id


def test_a_kind_narrows_a_bare_name() -> None:
    assert "team_2" == find(KNOWN, "default", kinds=("team",)).id


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("default", "more than one"),
        ("key:twin", "key_5"),
        ("nobody", "there are: org:default"),
        ("", "there is no org, team, key or pool"),
    ],
)
def test_none_or_many_are_told(text: str, told: str) -> None:
    with pytest.raises(CliError, match=told):
        find(KNOWN, text)


def test_levels_lie_above() -> None:
    org = Named("org", "org_1", "acme")
    team = Named("team", "team_2", "search", ("acme",))
    key = Named("key", "key_3", "search", ("acme", "search"))
    pool = Named("pool", "pool_4", "acme")
    other = Named("team", "team_5", "search", ("beta",))
    known = [org, team, key, pool, other]
    assert [org, team, key] == levels(known, key)
    assert [org, team] == levels(known, team)
    assert [pool] == levels(known, pool)
