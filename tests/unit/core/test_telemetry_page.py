"""docs/telemetry.md names all that is told, and nothing else."""

import re
from pathlib import Path

from penstock.core import log, semconv, telemetry, telemetry_collector
from penstock.core.metrics import Metrics
from penstock.router import wiring

PAGE = (Path(__file__).parents[3] / "docs" / "telemetry.md").read_text(encoding="utf-8")
NOT_ATTRIBUTES = {"penstock.yaml", "penstock.alert"}


def named(pattern: str) -> set[str]:
    """What the page has in a code span and is wholly of this form."""
    return {word for word in re.findall(r"`([^`\n]+)`", PAGE) if re.fullmatch(pattern, word)}


def test_every_attribute_of_ours() -> None:
    told = (value for name, value in vars(semconv).items() if name.isupper())
    ours = {v for v in told if isinstance(v, str) and v.startswith("penstock.")}
    assert ours == named(r"penstock\.[a-z_.]+") - NOT_ATTRIBUTES


def test_every_metric() -> None:
    source = Path(wiring.__file__).read_text(encoding="utf-8")
    read = {f"penstock_{name}_total" for name in re.findall(r'count_from\(\s*"(\w+)"', source)}
    own = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics().registry.collect()
    }
    assert own | read == named(r"penstock_[a-z_]+")


def test_every_variable_of_a_collector() -> None:
    source = Path(telemetry_collector.__file__).read_text(encoding="utf-8")
    suffixes = set(re.findall(r'\.(?:text|file|_fault)\(\s*"([A-Z_]+)"', source))
    expected = {f"OTEL_EXPORTER_OTLP_{suffix}" for suffix in suffixes}
    assert expected == named(r"OTEL_EXPORTER_OTLP_(?!TRACES_)[A-Z_]+")


def test_rates_and_levels() -> None:
    assert f"up to {telemetry.DETAILED_PER_SECOND:g} requests a second" in PAGE
    assert f"up to {telemetry.NOTABLE_PER_SECOND:g} more" in PAGE
    assert f"{telemetry.SLOW_SECONDS:g} seconds or more" in PAGE
    assert f"default {telemetry_collector.TIMEOUT_MS_DEFAULT}" in PAGE
    assert {level.lower() for level in log.LEVELS} <= named("[a-z]+")
