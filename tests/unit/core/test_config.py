import asyncio
from pathlib import Path

import pytest
from genai_prices.data import providers

import penstock
from penstock.core.config import ConfigError, LiveCatalogue, load, parse
from penstock.core.money import parse_usd

DEFAULT = Path(penstock.__file__).parent / "penstock.yaml"

FAULTY = """\
version: 2
models:
  a:
    source: x
    context_tokens: -1
    bogus: 1
    max_output_tokens: 3
    tariff: {input_usd_per_mtok: 0.1, output_usd_per_mtok: '1'}
"""

DANGLING = """\
models: {}
providers:
  local: {}
aliases:
  q:
    targets:
      - local/nowhere
    baseline: acme/none
"""


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    return caught.value.faults


def test_all_faults_are_told_at_once_by_path_and_line():
    told = faults(FAULTY)
    assert [
        ("f:1", "version"),
        ("f:5", "models.a.context_tokens"),
        ("f:8", "models.a.tariff.input_usd_per_mtok"),
        ("f:6", "models.a.bogus"),
    ] == [tuple(line.split(": ")[:2]) for line in told]


def test_faults_between_fields_are_told_together_with_those_of_fields():
    told = faults(FAULTY + "aliases: {q: {targets: [local/a, local/b]}, r: {targets: 3}}\n")
    assert [
        "f:9: aliases.r.targets: must be a list",
        "f:9: aliases.q.targets.1: 'local/b' is neither",
    ] == [line.split(" local/<")[0] for line in told if "aliases" in line]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("limits: {n: 3}", "limits.n: is no field here; known: request_bytes_max, messages_max,"),
        (
            "aliases: {q: {target: [a]}}",
            "aliases.q.target: is no field here; known: targets, baseline",
        ),
        ("aliases: {q: {}}", "aliases.q.targets: is missing"),
        ("providers: {acme: {kind: x}}", "providers.acme.kind: must be 'openai'"),
        ("models: 3", "models: must be a mapping of names"),
        ("aliases: {q: 3}", "aliases.q: must be a mapping of fields"),
        ("aliases: {a b: {targets: [x/y]}}", "aliases.a b: a name has 1 to 64 letters, digits,"),
    ],
)
def test_faults_are_told_in_an_operators_words(text, says):
    assert any(line.startswith(f"f:1: {says}") for line in faults(text))


def test_names_that_lead_nowhere_are_faults():
    told = faults(DANGLING)
    assert ["f:3", "f:7", "f:8"] == [line.split(": ")[0] for line in told]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f:1: is empty"),
        ("- a", "f:1: is empty"),
        ("a: [", "f:1: no valid YAML"),
        ("version: 1\nversion: 1", "f:2: found duplicate key"),
    ],
)
def test_what_is_no_catalogue_is_told_with_its_line(text, says):
    assert faults(text)[0].startswith(says)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.yaml")


def test_the_default_is_valid():
    assert "auto" in load(DEFAULT).aliases


def test_the_price_book_is_what_genai_prices_says():
    listed = {m.id: m for p in providers if p.id == "openai" for m in p.models}
    for name, model in load(DEFAULT).providers["openai"].models.items():
        theirs = listed[name].prices
        expected = [
            parse_usd(str(getattr(value, "base", value)))
            for value in (theirs.input_mtok, theirs.cache_read_mtok, theirs.output_mtok)
        ]
        price = model.price.price
        assert expected == [
            price.input_nano_usd_per_mtok,
            price.cached_input_nano_usd_per_mtok,
            price.output_nano_usd_per_mtok,
        ], name


def test_a_model_with_tiered_prices_is_bounded_to_the_first_tier():
    listed = {m.id: m for p in providers if p.id == "openai" for m in p.models}
    for name, model in load(DEFAULT).providers["openai"].models.items():
        tiers = getattr(listed[name].prices.input_mtok, "tiers", [])
        assert all(model.context_tokens <= tier.start for tier in tiers), name


async def test_a_good_change_is_taken_over_and_a_faulty_one_is_not(tmp_path):
    path = tmp_path / "penstock.yaml"
    path.write_text("version: 1\nlimits: {n_max: 3}\n")
    live = LiveCatalogue(path)
    changed: asyncio.Queue[int] = asyncio.Queue()
    faulty: asyncio.Queue[list[str]] = asyncio.Queue()
    watching = asyncio.create_task(
        live.watch(
            lambda c: changed.put_nowait(c.limits.n_max), lambda e: faulty.put_nowait(e.faults)
        )
    )

    async def rewritten() -> int:
        # The watch may begin after the first write: it is written until it is seen.
        while True:
            path.write_text("version: 1\nlimits: {n_max: 5}\n")
            try:
                return await asyncio.wait_for(changed.get(), 0.5)
            except TimeoutError:
                continue

    assert 5 == await asyncio.wait_for(rewritten(), 20)
    path.write_text("limits: {n_max: none}\n")
    told = await asyncio.wait_for(faulty.get(), 20)
    assert 5 == live.current.limits.n_max
    assert told == live.faults
    assert "limits.n_max" in told[0]
    path.write_text("version: 1\nlimits: {n_max: 5}\n")
    assert 5 == await asyncio.wait_for(changed.get(), 20)
    assert [] == live.faults
    watching.cancel()
