import os
from pathlib import Path

import pytest
from genai_prices.data import providers
from watchfiles._rust_notify import WatchfilesRustInternalError

import penstock
from penstock.core import config
from penstock.core.catalogue import Catalogue
from penstock.core.config import ConfigError, LiveCatalogue, load, parse
from penstock.core.money import parse_usd
from support.watched import watching

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
  local: {base_url: 'http://l', api_key_env: L}
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
        ("providers: {acme: {}}", "providers.acme.api_key_env: is missing"),
        ("providers: {acme: {}}", "providers.acme.base_url: is missing"),
        ("providers: {a: {api_key_env: sk-1}}", "providers.a.api_key_env: must be the name of a"),
        ("providers: {a: {base_url: 'http://x:y'}}", "providers.a.base_url: must be a URL such as"),
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
        ("- a", "f:1: must be a mapping of fields"),
        ("a: [", "f:1: no valid YAML"),
        ("version: 1\nversion: 1", "f:2: version: is there twice, first in line 1"),
        ("version: 1\nx: !secret y", "f:2: x: the tag !secret is not known here"),
        ("version: 1\nmodels: !!set {a: }", "f:2: models: the tag !!set is not known here"),
        ("\nversion: !!int abc", "f:2: version: 'abc' is no int"),
        ("\ncache: {enabled: !!bool perhaps}", "f:2: cache.enabled: 'perhaps' is no bool"),
        ("\nrouting: {breaker_open_seconds: .nan}", "f:2: routing.breaker_open_seconds: '.nan'"),
        ("\nmodels: {? [a] : b}", "f:2: models: a list or a mapping is no name"),
        ("\na: " + "[" * 3000, "f:2: nests more than 32 deep"),
        ("a: &a\n  - *a", "f:1: an alias stands within what it repeats"),
        ("a: &a\n  <<: *a", "f:1: an alias stands within what it repeats"),
        ("a: &a {}\nb: {<<: [*a, 3]}", "f:2: b: only a mapping can be merged (<<)"),
        ("version: 1\n---\nversion: 1", "f:2: no valid YAML: but found another document"),
        ("version: 1\n# \x01", "f:2: a file may not hold the character"),
    ],
)
def test_what_is_no_catalogue_is_told_with_its_line(text, says):
    assert faults(text)[0].startswith(says)


def test_a_date_that_is_none_is_told_with_its_field():
    text = (Path(DEFAULT).read_text()).replace("as_of: 2026-11-24", "as_of: 2026-11-31", 1)
    line = text[: text.index("2026-11-31")].count("\n") + 1
    field = "providers.openai.models.gpt-4o-mini.price.as_of"
    (told,) = faults(text)
    assert told.startswith(f"f:{line}: {field}: must be a valid date")


def test_a_fault_in_what_is_merged_is_told_where_it_is_written():
    text = "cache: &c\n  enabled: 3\n  ttl_seconds: 0\nlimits:\n  <<: *c\n  ttl_seconds: 1\n"
    told = [line.split(": ")[:2] for line in faults(text)]
    assert [["f:2", "limits.enabled"], ["f:6", "limits.ttl_seconds"]] == told[2:]


def test_its_own_value_wins_over_a_merged_one_and_the_first_merge_over_the_next():
    a, b = "&a {ttl_seconds: 1, entry_bytes_max: 2000}", "&b {ttl_seconds: 2, enabled: false}"
    told = parse(f"cache: {{<<: [{a}, {b}], entry_bytes_max: 3000}}").cache
    assert (1, 3000, False) == (told.ttl_seconds, told.entry_bytes_max, told.enabled)


def test_what_aliases_repeat_is_counted():
    lines = ["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 25)]
    (told,) = faults("\n".join(lines))
    assert told.endswith("has more than 200000 values, repeated ones counted")


def test_names_are_text_whatever_they_look_like():
    model = "{source: x, context_tokens: 64, max_output_tokens: 1, tariff: *t}"
    tariff = "{input_usd_per_mtok: 1, output_usd_per_mtok: '1'}"
    text = f"models: {{1.50: {model.replace('*t', '&t ' + tariff)}, true: {model}}}"
    assert {"1.50", "true"} == set(parse(text).models)


def test_openai_alone_has_defaults_for_its_variables():
    found = parse("providers: {openai: {}, acme: {base_url: 'http://a', api_key_env: ACME_KEY}}")
    openai, acme = found.providers["openai"], found.providers["acme"]
    assert ("OPENAI_API_KEY", "OPENAI_BASE_URL") == (openai.api_key_env, openai.base_url_env)
    assert ("ACME_KEY", None) == (acme.api_key_env, acme.base_url_env)


def test_what_is_no_text_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is no file"):
        load(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match="is no file"):
        load(fifo)
    file = tmp_path / "penstock.yaml"
    file.write_bytes(b"version: 1\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"penstock\.yaml:2: is not UTF-8 text"):
        load(file)
    file.write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than 4194304 bytes"):
        load(file)
    file.write_bytes("version: 1\n".encode("utf-8-sig"))
    assert 1 == load(file).version


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


def _demand_few(catalogue: Catalogue) -> None:
    if catalogue.limits.n_max == 128:
        raise ValueError("too many for me")


@pytest.fixture
async def watched(tmp_path):
    path = tmp_path / "folder" / "penstock.yaml"
    path.parent.mkdir()
    path.write_text("version: 1\n")
    async with watching(path, LiveCatalogue(path), _demand_few) as found:
        yield found


async def test_a_good_change_is_taken_over_and_a_faulty_one_is_not(watched):
    watched.write(5)
    assert 5 == await watched.taken()
    watched.write("none")
    told = await watched.refused()
    assert 5 == watched.live.current.limits.n_max
    assert told == watched.live.faults
    assert "limits.n_max" in told[0]
    watched.write(5)
    assert 5 == await watched.taken()
    assert [] == watched.live.faults


async def test_a_watch_outlives_whatever_becomes_of_its_file(watched):
    watched.path.unlink()
    assert "No such file" in (await watched.refused())[0]
    watched.path.mkdir()
    assert "is no file" in (await watched.refused())[0]
    watched.path.rmdir()
    assert "No such file" in (await watched.refused())[0]
    watched.path.write_bytes(b"\xff")
    assert "is not UTF-8 text" in (await watched.refused())[0]
    watched.write(7)
    assert 7 == await watched.taken()


async def test_a_change_that_a_part_cannot_take_over_is_told_and_the_last_one_stays(watched):
    watched.write(128)
    assert "cannot be taken over: ValueError" in (await watched.refused())[0]
    assert 8 == watched.live.current.limits.n_max
    watched.write(6)
    assert 6 == await watched.taken()


async def test_a_folder_that_was_replaced_is_looked_into_all_the_same(watched, monkeypatch):
    monkeypatch.setattr(config, "LOOK_MS", 50)
    watched.write(3)
    assert 3 == await watched.taken()
    folder = watched.path.parent
    folder.rename(folder.with_name("gone"))
    await watched.refused()
    folder.mkdir()
    watched.write(4)
    assert 4 == await watched.taken()


@pytest.mark.parametrize("refusal", [PermissionError, WatchfilesRustInternalError])
async def test_where_nothing_can_be_watched_the_file_is_looked_at(tmp_path, monkeypatch, refusal):
    def refused(*_, **__):
        raise refusal("Too many open files")

    monkeypatch.setattr(config, "awatch", refused)
    monkeypatch.setattr(config, "LOOK_MS", 10)
    path = tmp_path / "penstock.yaml"
    path.write_text("version: 1\n")
    async with watching(path, LiveCatalogue(path)) as watched:
        watched.write(5)
        assert 5 == await watched.taken()
