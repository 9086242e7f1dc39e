"""The command line as a person meets it: clear lines, a status that is not 0, no traceback."""

import json
import os
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from penstock.cli import __main__ as program
from penstock.cli import admin, child, commands_status, lock, processes
from penstock.cli.app import ORDER, app
from penstock.cli.as_json import as_dict
from penstock.cli.options import DEFAULT_CONFIG
from penstock.cli.state import State
from penstock.core import errors, semconv
from penstock.quota.v1 import admin_pb2
from penstock.traces.store import TROUBLE, Store
from support.spans import request_span, span
from support.tcp import free_port

program.register()


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("PENSTOCK_GRPC", "PENSTOCK_API_KEY", "PENSTOCK_CONFIG", "PAID", "ENGINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PENSTOCK_GRPC_PORT", "PENSTOCK_HTTP_PORT"):
        # Whoever runs Penstock on this machine has the default ones.
        monkeypatch.setenv(name, str(free_port()))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["--state", str(tmp_path / "state"), *arguments])

    return run


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["status"], "does not run"),
        (["models"], "no router is known here"),
        (["explain", "hello"], "no router is known here"),
        (["chat", "hello"], "no router is known here"),
        (["chat", "--json"], "--json needs PROMPT"),
        (["keys", "list"], "no ledger is known here"),
        (["keys", "create", "x", "--expires", "soon"], "is no date or time"),
        (["budget", "set", "12,50"], "is no decimal amount"),
        (["budget", "set", "-1"], "a limit cannot be negative"),
        (["budget", "set", "-0.50"], "a limit cannot be negative"),
        (["budget", "set", "--frob"], "there is no option --frob"),
        (["budget", "set", "0.0000000001"], "finer than a nano-USD"),
        (["budget", "set", "nan"], "is no finite amount"),
        (["budget", "set", "1e400"], "is not between 0 and"),
        (["budget", "set", "5", "--window", "fortnight"], "minute, hour, day, week, month, total"),
        (["budget", "set", "5", "--soft", "80,50"], "ascending, e.g. 50,80,100"),
        (["limit", "set", "key:x"], "say --requests, --tokens or --in-flight"),
        (["limit", "set", "key:x", "--requests", "60"], "e.g. 60/minute"),
        (["limit", "set", "key:x", "--requests", "-1/minute"], "is no whole number"),
        (["limit", "set", "key:x", "--requests", "60/total"], "is no window"),
        (["limit", "set", "key:x", "--in-flight", "4.5"], "is no whole number"),
        (["grant", "create", "0", "--account", "a", "--key", "k"], "more than 0 USD"),
        (["grant", "create", "-3", "--account", "a", "--key", "k"], "more than 0 USD"),
        (["grant", "create", "3", "--account", "a", "--key", "k", "--for", "soon"], "e.g. 24h"),
        (["keys", "rotate", "key:x", "--overlap", "1mo"], "is no span of time"),
        (["account", "create", "key:x"], "neither org:NAME nor team:ORG/NAME"),
        (["budget", "set", "5", "--time-zone", "Mars/Base"], "is not known"),
        (["usage", "--since", "yesterday"], "is no date or time"),
        (["usage", "--since", "2026-11-02", "--until", "2026-11-01"], "after --since 2026-11-02"),
        (["keys", "rotate", "key:ci", "--overlap", "90d"], "--overlap 90d: at most 30d"),
        (["quota", "audit"], "database is not known here"),
        (["trace", "req_1"], "no traces are kept"),
        (["up", "--paid", "gratis"], "PAID=gratis is not known"),
        (["up", "--grpc-port", "0"], "is no port"),
        (["up", "--grpc-port", "7099", "--http-port", "7099"], "cannot share port"),
        (["up", "--engine", "vllm"], "make env-vllm"),
        (["config", "check", "nowhere.yaml"], "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_done_is_told_in_a_line(ask, command: list[str], told: str) -> None:
    result = ask(*command)
    assert result.exit_code in {1, 2}, result.output
    assert told in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


REASON_FAULT = "--reason is missing or blank: say why"


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (
            ["adjust", "1e-10", "--key", "k", "--account", "a"],
            ["AMOUNT: '1e-10' is finer than a nano-USD (9 decimal places)", REASON_FAULT],
        ),
        (
            ["adjust", "1", "--key", "k", "--actor", "x" * 129],
            [
                "say --account or --reservation: one of them",
                REASON_FAULT,
                "--actor has 129 characters; at most 128",
            ],
        ),
        (
            ["resolve", "r", "-1"],
            ["AMOUNT: -1: what an attempt cost is not negative", REASON_FAULT],
        ),
        (["resolve", "r", "1", "--reason", " "], [REASON_FAULT]),
    ],
    ids=["amount", "account and actor", "resolve", "alone"],
)
def test_a_missing_reason_is_told_with_the_other_fault_of_the_line(
    ask, words: list[str], lines: list[str]
) -> None:
    result = ask("ledger", *words)
    assert 2 == result.exit_code
    told = [line.strip() for line in result.stderr.removeprefix("penstock: ").splitlines()]
    assert lines == told


def test_the_help_lists_commands_as_a_person_needs_them(ask) -> None:
    assert list(ORDER) == get_command(app).list_commands(None)


@pytest.mark.parametrize("command", [["chat"], ["explain"], ["up"], ["keys", "create"]])
def test_no_flag_has_a_negative_twin(ask, command: list[str]) -> None:
    assert "--no-" not in ask(*command, "--help").stdout.replace("--no-cache ", "")


@pytest.mark.parametrize("wanted", ["req_0a1b", "0a1b"])
def test_a_request_is_found_with_or_without_what_all_ids_begin_with(
    ask, tmp_path: Path, wanted: str
) -> None:
    store = Store(tmp_path / "state" / "traces", 10)
    store.add([request_span(1, 1, "req_0a1b")])
    store.close()
    result = ask("trace", wanted, "--json")
    assert 0 == result.exit_code, result.output
    assert "req_0a1b" in result.stdout


def test_the_list_of_traces_tells_route_cost_and_outcome(ask, tmp_path: Path) -> None:
    store = Store(tmp_path / "state" / "traces", 10)
    told = {semconv.REQUEST_MODEL: "auto", semconv.PROVIDER: "local", semconv.RESPONSE_MODEL: "m"}
    cost = {semconv.COST_NANO_USD: 1_500, semconv.REASON: "local_first", semconv.CACHE: "miss"}
    store.add([request_span(1, 1, "req_1", attributes=told | cost)])
    store.close()
    line = next(x for x in ask("trace").stdout.splitlines() if "req_1" in x)
    assert ["auto", "local/m", "local_first", "miss", "0.0000015"] == line.split()[3:8]
    assert 1_500 == json.loads(ask("trace", "--json").stdout)[0]["cost_nano_usd"]


def test_that_the_users_collector_gets_no_traces_is_told_beside_them(ask, tmp_path: Path) -> None:
    store = Store(tmp_path / "state" / "traces", 10)
    store.add([request_span(1, 1, "req_1")])
    store.tell_trouble("traces do not reach http://there")
    told = ask("trace", "--json")
    assert "traces do not reach http://there" == told.stderr.strip()
    assert 1 == len(json.loads(told.stdout))
    store.close()
    assert "" == ask("trace").stderr


def test_the_list_of_traces_fits_a_narrow_terminal_with_ids_whole(
    ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = "req_0192a3b4c5d67e8f9a0b1c2d3e4f5a6b"
    store = Store(tmp_path / "state" / "traces", 10)
    told = {semconv.REQUEST_MODEL: "auto", semconv.PROVIDER: "local", semconv.RESPONSE_MODEL: "m"}
    cost = {semconv.COST_NANO_USD: 1_500, semconv.REASON: "local_first", semconv.CACHE: "miss"}
    store.add([request_span(1, 1, identity, attributes=told | cost)])
    store.close()
    monkeypatch.setenv("COLUMNS", "80")
    lines = ask("trace").stdout.splitlines()
    assert identity in "\n".join(lines)
    assert [] == [line for line in lines if len(line.rstrip()) > 80 and "not shown" not in line]


def test_a_waterfall_fits_a_narrow_terminal_and_says_what_it_lacks(
    ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "state" / "traces", 10)
    told = {semconv.COST_NANO_USD: 1_500, semconv.ATTEMPT_COST_NANO_USD: 1_500}
    store.add([request_span(1, 1, "req_1", attributes=told), span(1, 2, 1)])
    store.close()
    assert "service" in ask("trace", "req_1").stdout  # to a file: as wide as it is
    monkeypatch.setenv("COLUMNS", "80")
    narrow = ask("trace", "req_1").stdout
    assert [] == [line for line in narrow.splitlines() if len(line.rstrip()) > 80]
    assert "not shown for want of width: service, amounts in nano-USD (--json has all)" in narrow
    assert "(1500 nano-USD)" not in narrow
    assert "0.0000015 USD" in narrow
    monkeypatch.setenv("COLUMNS", "120")
    assert "not shown" not in ask("trace", "req_1").stdout


def test_a_second_up_says_what_differs(ask, tmp_path: Path, monkeypatch) -> None:
    state = State.at(tmp_path / "state")
    state.make()
    grpc, http = os.environ["PENSTOCK_GRPC_PORT"], os.environ["PENSTOCK_HTTP_PORT"]
    options = {"paid": "", "engine": "llamacpp", "config": str(DEFAULT_CONFIG)}
    ports = {"grpc_port": grpc, "http_port": http}
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    me = processes.Record.of("penstock up", os.getpid())
    processes.save(state, processes.Running(me, (), options | ports))
    with lock.locked(state, lock.UP):
        assert "runs already" in ask("up").stdout
        told = ask("up", "--paid", "stand-in", "--grpc-port", "7999").stderr
        assert "PAID is unset, asked for: stand-in" in told
        assert f"PENSTOCK_GRPC_PORT is {grpc}, asked for: 7999" in told
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        assert "OPENAI_API_KEY is unset, asked for: set" in ask("up").stderr


@pytest.mark.parametrize("name", [lock.UP, lock.DOWN])
def test_a_pid_of_the_past_is_never_told_as_running(ask, tmp_path: Path, name: str) -> None:
    state = State.at(tmp_path / "state")
    state.make()
    dead = processes.Record(lock.UP, 2**22, 1.0)
    options = {"paid": "", "engine": "llamacpp", "config": str(DEFAULT_CONFIG)}
    processes.save(state, processes.Running(dead, (), options))
    with lock.locked(state, name):
        refused = ask("up")
    assert (1, "") == (refused.exit_code, refused.stdout)
    told = " ".join(refused.stderr.split())
    assert f"`{name}` (pid {os.getpid()}) is at work on {state.root}" in told
    assert "it has just begun, or is about to end" in told


def test_a_full_disk_is_told_and_is_not_healthy(ask, tmp_path: Path, monkeypatch) -> None:
    state = State.at(tmp_path / "state")
    state.make()
    me = processes.Record.of(lock.UP, os.getpid())
    options = {"config": str(DEFAULT_CONFIG), "grpc_port": "1", "http_port": "2"}
    processes.save(state, processes.Running(me, (), options))
    assert 0 == ask("status").exit_code

    monkeypatch.setattr(commands_status, "DISK_FREE_BYTES_MIN", 2**60)
    full = ask("status")

    assert 1 == full.exit_code
    (disk,) = json.loads(ask("status", "--json").stdout)["parts"]
    assert ("disk", False) == (disk["name"], disk["healthy"])
    assert f"MiB free at {state.root}; free some space" in disk["detail"]
    assert "full: " in full.stdout


def test_status_tells_of_a_collector_that_gets_no_copies(ask, tmp_path: Path) -> None:
    state = State.at(tmp_path / "state")
    state.make()
    me = processes.Record.of(lock.UP, os.getpid())
    options = {"config": str(DEFAULT_CONFIG), "grpc_port": "1", "http_port": "2"}
    processes.save(state, processes.Running(me, (), options))
    assert json.loads(ask("status", "--json").stdout)["collector_fault"] == ""
    state.traces.mkdir(exist_ok=True)
    (state.traces / TROUBLE).write_text("the collector is away")
    assert "the collector is away" in ask("status").stdout
    assert json.loads(ask("status", "--json").stdout)["collector_fault"] == "the collector is away"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "200 ms"), (1, "1 s"), (90, "90 s"), (91, "2 min"), (7200, "2 h"), (554_451, "7 days")],
)
def test_a_duration_is_told_for_people(seconds: float, told: str) -> None:
    assert told == admin.duration(seconds)


def test_a_refusal_with_its_reset_names_no_seconds() -> None:
    resets = {"resets_at": "2026-12-01T00:00:00Z"}
    full = errors.BudgetExceeded("resets …", retry_after_seconds=554_451, metadata=resets)
    assert "again after" not in admin.told(full, "here").message
    busy = errors.CapacityExhausted("full", retry_after_seconds=300)
    assert "again after 5 min" in admin.told(busy, "here").message


def test_down_without_anything_running_is_no_fault(ask) -> None:
    assert {"stopped": False} == json.loads(ask("down", "--json").stdout)


def test_clean_removes_the_state(ask, tmp_path: Path) -> None:
    State.at(tmp_path / "state").make()
    assert {"removed": True} == json.loads(ask("clean", "--json").stdout)
    assert not (tmp_path / "state").exists()
    assert {"removed": False} == json.loads(ask("clean", "--json").stdout)


def test_clean_leaves_alone_what_a_link_in_the_state_leads_to(ask, tmp_path: Path) -> None:
    state = State.at(tmp_path / "state")
    state.make()
    thesis = tmp_path / "precious" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.touch()
    for link in (state.postgres, state.traces):
        link.symlink_to(thesis.parent)
    assert 0 == ask("clean").exit_code
    assert thesis.exists()
    assert not state.root.exists()


@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_no_state_folder_is_neither_used_nor_removed(
    ask, tmp_path: Path, is_link: bool
) -> None:
    thesis = tmp_path / "precious" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.touch()
    if is_link:
        (tmp_path / "state").symlink_to(thesis.parent)
    else:
        thesis = thesis.parent.rename(tmp_path / "state") / "thesis.txt"
    for command, told in (("clean", "nothing in it is removed"), ("up", "holds other files")):
        refused = ask(command)
        assert 1 == refused.exit_code
        assert told in " ".join(refused.stderr.split())
    assert {"stopped": False} == json.loads(ask("down", "--json").stdout)
    assert [thesis.name] == [p.name for p in thesis.parent.iterdir()]


def test_clean_waits_for_nobody(ask, tmp_path: Path) -> None:
    state = State.at(tmp_path / "state")
    state.make()
    with lock.locked(state, lock.UP):
        refused = ask("clean")
    assert 1 == refused.exit_code
    assert f"`penstock up` (pid {os.getpid()})" in refused.stderr
    assert "`make down` first" in refused.stderr
    assert state.root.exists()


def test_the_example_is_a_good_configuration(ask, tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text(ask("config", "example").stdout)
    told = json.loads(ask("config", "check", "--json").stdout)
    assert (True, 1) == (told["ok"], told["models"])


def test_all_faults_of_a_configuration_are_told_at_once(ask, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "version: 2\nmodels:\n  m:\n    source: x\nlimits:\n  n_max: 0\n"
    )
    result = ask("config", "check", "bad.yaml", "--json")
    faults = json.loads(result.stdout)["faults"]
    assert 1 == result.exit_code
    assert any("bad.yaml:1: version" in fault for fault in faults)
    assert any("bad.yaml:6: limits.n_max" in fault for fault in faults)


def test_json_keeps_amounts_as_exact_numbers() -> None:
    row = admin_pb2.UsageRow(key_id="key_3", posted_nano_usd=2**62 + 1, attempts=3)
    told = as_dict(admin_pb2.GetUsageResponse(rows=[row]))["rows"][0]
    assert (2**62 + 1, 3, "key_3") == (told["posted_nano_usd"], told["attempts"], told["key_id"])


def test_a_log_line_is_told_as_its_level_and_message() -> None:
    line = '{"level": "error", "message": "no", "exception": "Traceback\\n  x\\nValueError: y"}'
    assert "error: no (ValueError: y)" == child.readable(line)
    assert "plain" == child.readable("plain\n")
