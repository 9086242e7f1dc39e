"""A small share of `make prove`, so that it runs with every test."""

from proofs import between, kills, race, simulation

SEED = 20261124
HISTORIES = 400
PER_GAP = 2
KILLS = 6
"""Two each of router, quota and PostgreSQL."""


def test_simulated_histories_balance() -> None:
    result = simulation.simulate(HISTORIES, SEED, on_chunk=lambda _: None)

    assert {} == result.failures
    assert HISTORIES == result.histories
    for name in ("crashes", "messages lost", "messages repeated", "answers lost"):
        assert result.counts[name] > HISTORIES / 2, name
    for name in ("operations through the Batcher", "turns busy", "quota processes killed"):
        assert result.counts[name] > 0, name


def test_what_commits_between_two_statements_comes_wholly_before_or_wholly_after() -> None:
    result = between.run(between.Plan(SEED, PER_GAP))

    assert {} == result.failures
    assert len(+result.reached) > 20
    assert result.waited > 0


def test_the_books_balance_after_kills_under_load() -> None:
    result = kills.run(KILLS, SEED)

    assert [] == result.failures
    assert KILLS == sum(result.kills.values())
    assert result.acknowledged > 0


def test_nobody_overspends_the_last_cent() -> None:
    result = race.run(1)

    assert [] == result.failures
    assert len(race.RACES) == result.races
