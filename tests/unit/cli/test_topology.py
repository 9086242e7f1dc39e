"""What each child is told of the caller's environment."""

from dataclasses import fields
from pathlib import Path

from penstock.cli.options import UpOptions
from penstock.cli.ports import INTERNAL
from penstock.cli.state import State
from penstock.cli.tokens import Secrets
from penstock.cli.topology import Plan, services


def environments(folder: Path, given: dict[str, str]) -> dict[str, dict[str, str]]:
    plan = Plan(
        state=State.at(folder),
        options=UpOptions("", "llamacpp", folder / "penstock.yaml", 7070, 7080, Path("python")),
        ports={name: 32_000 + number for number, name in enumerate(INTERNAL)},
        secrets=Secrets(**{f.name: f"secret-{f.name}" for f in fields(Secrets)}),
        environment=given,
        upstream_variables=("OPENAI_API_KEY", "OPENAI_BASE_URL"),
        local_config=folder / "penstock.yaml",
    )
    return {service.name: dict(service.environment) for service in services(plan)}


def test_a_child_gets_its_own_settings_and_nobody_elses(tmp_path: Path) -> None:
    given = {
        "PENSTOCK_ROUTER_METRICS_LISTEN": "127.0.0.1:7081",
        "PENSTOCK_CACHE_TTL_SECONDS": "60",
        "PENSTOCK_LOG_LEVEL": "DEBUG",
    }
    found = environments(tmp_path, given)
    holders = {n: {s for s, environment in found.items() if n in environment} for n in given}
    assert {
        "PENSTOCK_ROUTER_METRICS_LISTEN": {"router"},
        "PENSTOCK_CACHE_TTL_SECONDS": {"cache"},
        "PENSTOCK_LOG_LEVEL": set(found),
    } == holders


def test_the_webhooks_of_alerts_are_for_the_ledger_alone(tmp_path: Path) -> None:
    found = environments(tmp_path, {"PENSTOCK_ALERTS_WEBHOOKS": "https://hooks.example/secret"})
    assert ["quota"] == [n for n, told in found.items() if "PENSTOCK_ALERTS_WEBHOOKS" in told]


def test_the_plans_own_word_wins_over_the_callers(tmp_path: Path) -> None:
    given = {"PENSTOCK_ROUTER_TOKEN": "theirs", "PENSTOCK_QUOTA_DSN": "postgresql://theirs"}
    found = environments(tmp_path, given)
    assert "secret-router_token" == found["router"]["PENSTOCK_ROUTER_TOKEN"]
    assert "theirs" not in found["quota"]["PENSTOCK_QUOTA_DSN"]


def test_a_providers_key_is_for_the_router_alone(tmp_path: Path) -> None:
    found = environments(tmp_path, {"OPENAI_API_KEY": "sk-secret"})
    assert ["router"] == [name for name, told in found.items() if "sk-secret" in told.values()]
