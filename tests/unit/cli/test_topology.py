"""What each child is told of the caller's environment."""

from dataclasses import fields
from pathlib import Path

from penstock.cli.options import UpOptions
from penstock.cli.ports import INTERNAL
from penstock.cli.state import State
from penstock.cli.tokens import Secrets
from penstock.cli.topology import Plan, services


def environments(folder: Path, given: dict[str, str], paid: str = "") -> dict[str, dict[str, str]]:
    plan = Plan(
        state=State.at(folder),
        options=UpOptions(paid, "llamacpp", folder / "penstock.yaml", 7070, 7080, Path("python")),
        ports={name: 32_000 + number for number, name in enumerate(INTERNAL)},
        secrets=Secrets(**{f.name: f"secret-{f.name}" for f in fields(Secrets)}),
        environment=given,
        upstream_variables=("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    )
    return {service.name: dict(service.environment) for service in services(plan)}


def test_a_child_gets_its_own_settings_and_nobody_elses(tmp_path: Path) -> None:
    given = {
        "PENSTOCK_ROUTER_METRICS_LISTEN": "127.0.0.1:7081",
        "PENSTOCK_CACHE_BYTES_MAX": "1048576",
        "PENSTOCK_LOG_LEVEL": "DEBUG",
    }
    found = environments(tmp_path, given)
    holders = {n: {s for s, environment in found.items() if n in environment} for n in given}
    assert {
        "PENSTOCK_ROUTER_METRICS_LISTEN": {"router"},
        "PENSTOCK_CACHE_BYTES_MAX": {"cache"},
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


def test_the_users_collector_is_for_the_traces_alone_and_all_others_tell_these(
    tmp_path: Path,
) -> None:
    theirs = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector.example:4318/v1/traces",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "api-key=secret",
    }
    found = environments(tmp_path, theirs)
    otel = {
        service: {n: v for n, v in told.items() if n.startswith("OTEL_")}
        for service, told in found.items()
    }
    assert theirs == otel.pop("traces")
    ours = {f"http://{found['traces']['PENSTOCK_TRACES_LISTEN']}"}
    ends = {name: told["OTEL_EXPORTER_OTLP_ENDPOINT"] for name, told in otel.items() if told}
    assert {"local", "quota", "cache", "capacity", "router"} == ends.keys()
    assert ours == set(ends.values())
    assert "api-key=secret" not in str(otel)


def test_a_stand_in_is_told_apart_from_every_provider(tmp_path: Path) -> None:
    found = environments(tmp_path, {"OPENAI_API_KEY": "sk-secret"}, paid="stand-in")
    assert "OPENAI_API_KEY" not in found["router"]
    assert "secret-stand_in_key" == found["router"]["PENSTOCK_STAND_IN_KEY"]
    assert {"router", "stand-in"} == {n for n, e in found.items() if "PENSTOCK_STAND_IN_KEY" in e}


def test_every_part_reads_the_copy_that_is_kept(tmp_path: Path) -> None:
    found = environments(tmp_path, {})
    readers = {n: e["PENSTOCK_CONFIG"] for n, e in found.items() if "PENSTOCK_CONFIG" in e}
    copy = str(State.at(tmp_path).config_in_use)
    assert {"local": copy, "capacity": copy, "router": copy} == readers
