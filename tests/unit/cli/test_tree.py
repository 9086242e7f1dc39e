"""The whole tree of commands: each explains itself, and together they reach all of the ledger."""

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from penstock.cli import __main__ as program
from penstock.cli.app import app
from penstock.quota.v1 import admin_pb2

program.register()

ROOT = Path(__file__).resolve().parents[3]
OPERATORS = (
    "account", "keys", "budget", "limit", "grant", "pool", "ledger", "alerts", "quota",
)  # fmt: skip
"""Groups of the ledger: their commands share their options."""

CHANGING = {
    "account": {"create", "set", "suspend", "resume"},
    "keys": {"create", "update", "rotate", "expire", "revoke"},
    "budget": {"set", "close"},
    "limit": {"set", "close"},
    "grant": {"create", "end"},
    "pool": {"set", "close"},
    "ledger": {"adjust", "resolve", "reconcile"},
}

TRIED = {("quota", "seal"), ("quota", "detach"), ("quota", "prune"), ("alerts", "test")}
"""What can be tried, and is no entry."""

PARITY = {
    "CreateAccount": "account create",
    "UpdateAccount": "account set",
    "ListAccounts": "account list",
    "SetSuspended": "account suspend",
    "CreateKey": "keys create",
    "ListKeys": "keys list",
    "RevokeKey": "keys revoke",
    "UpdateKey": "keys update",
    "RotateKey": "keys rotate",
    "SetBudget": "budget set",
    "ListBudgets": "budget list",
    "CloseBudget": "budget close",
    "SetRateLimit": "limit set",
    "ListRateLimits": "limit list",
    "CloseRateLimit": "limit close",
    "CreateGrant": "grant create",
    "ListGrants": "grant list",
    "EndGrant": "grant end",
    "SetPool": "pool set",
    "ListPools": "pool list",
    "ClosePool": "pool close",
    "Adjust": "ledger adjust",
    "Reconcile": "ledger reconcile",
    "ListAlerts": "alerts list",
    "TestAlerts": "alerts test",
    "GetBalance": "ledger balance",
    "WatchBalance": "ledger balance",
    "ListEntries": "ledger entries",
    "GetUsage": "ledger usage",
    "ResolveSuspense": "ledger resolve",
}
"""Every call of AdminService, and what an operator types."""

Command = Any
"""Of typer's own click, which it does not name."""

QUOTED = re.compile(r"`(?:\.venv/bin/)?penstock ([^`]+)`")
IN_A_BLOCK = re.compile(
    r"^(?:\S+=\$\()?(?:\.venv/bin/)?penstock (.+?)(?:\s{2,}#.*|\s[|>].*)?$", re.MULTILINE
)


def walk(command: Command, *path: str) -> Iterator[tuple[tuple[str, ...], Command]]:
    if isinstance(command, TyperGroup):
        for name, below in command.commands.items():
            yield from walk(below, *path, name)
    else:
        yield path, command


TREE = dict(walk(get_command(app)))
OF_OPERATORS = {path: command for path, command in TREE.items() if path[0] in OPERATORS}


def _typed(path: tuple[str, ...]) -> str:
    return " ".join(path)


def options(command: Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


@pytest.mark.parametrize("path", TREE, ids=_typed)
def test_each_command_and_each_of_its_parameters_has_a_help(path: tuple[str, ...]) -> None:
    command = TREE[path]
    assert command.help
    missing = [p.name for p in command.params if not getattr(p, "help", "")]
    assert [] == missing
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert (0, True) == (shown.exit_code, "Usage:" in shown.output)


@pytest.mark.parametrize("path", TREE, ids=_typed)
def test_each_command_shows_examples_that_can_be_typed(path: tuple[str, ...]) -> None:
    told = TREE[path].epilog or ""
    examples = [line.strip().replace("\\[", "[") for line in told.splitlines()[1:] if line.strip()]
    assert examples
    assert {_typed(path)} == {_typed(parsed(example)) for example in examples}


def test_every_command_has_json_but_the_one_that_prints_a_file() -> None:
    without = [path for path, command in TREE.items() if "--json" not in options(command)]
    assert [("config", "example")] == without


@pytest.mark.parametrize("group", OPERATORS)
def test_a_groups_help_tells_exit_statuses_units_and_where_the_ledger_is(group: str) -> None:
    told = " ".join(CliRunner().invoke(app, [group, "--help"]).output.split())
    assert "Exit status: 0 done; 1 refused or failed; 2 a wrong argument" in told
    assert ("PENSTOCK_QUOTA_DSN" if group == "quota" else "PENSTOCK_ADMIN_TOKEN") in told
    if group in {"budget", "grant", "ledger"}:
        assert "USD" in told


@pytest.mark.parametrize("path", OF_OPERATORS, ids=_typed)
def test_an_amount_a_date_and_a_needed_reason_are_told_with_their_form(
    path: tuple[str, ...],
) -> None:
    command = OF_OPERATORS[path]
    helps = {p.name: getattr(p, "help", "") for p in command.params}
    for name in ("usd", "limit"):
        assert "USD" in helps.get(name, "USD")
    for name in ("since", "until", "expires", "starts", "at"):
        if name in helps:
            assert any(word in helps[name].lower() for word in ("date", "utc day")), name
    if path[0] == "ledger" and path[1] in {"adjust", "resolve"}:
        assert "Needed." in helps["reason"]


def parsed(example: str) -> tuple[str, ...]:
    """The command that it means, its options and arguments taken as the real parser takes them."""
    first, *words = shlex.split(example)
    assert "penstock" == first
    command: Command = get_command(app)
    path: list[str] = []
    while isinstance(command, TyperGroup):
        word = words.pop(0)
        assert word in command.commands, f"penstock {' '.join([*path, word])} is no command"
        path.append(word)
        command = command.commands[word]
    context = command.make_context(path[-1], words)
    given = [str(value) for value in context.params.values()]
    assert [] == [value for value in (*context.args, *given) if value.startswith("--")], example
    return tuple(path)


@pytest.mark.parametrize("path", OF_OPERATORS, ids=_typed)
def test_operators_commands_share_their_options(path: tuple[str, ...]) -> None:
    found = options(OF_OPERATORS[path])
    group, name = path
    shared = {"--dry-run", "--reason", "--actor"}
    assert "--json" in found
    expected = shared if name in CHANGING.get(group, set()) else set()
    if path in TRIED:
        expected = {"--dry-run"}
    assert expected == found & shared


def test_every_command_that_changes_is_there() -> None:
    missing = [
        f"{group} {name}"
        for group, names in CHANGING.items()
        for name in names
        if (group, name) not in TREE
    ]
    assert [] == missing


def test_an_operator_reaches_every_call_of_the_admin_service() -> None:
    service = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
    assert sorted(PARITY) == sorted(method.name for method in service.methods)
    for method, typed in PARITY.items():
        assert f'"{method}"' in source(typed), f"penstock {typed} calls {method}"


def source(typed: str) -> str:
    """Of the module that defines the command."""
    callback: Callable[..., Any] | None = TREE[tuple(typed.split())].callback
    module = inspect.getmodule(inspect.unwrap(callback)) if callback else None
    assert module is not None
    return inspect.getsource(module)


def test_what_texts_and_pages_tell_to_type_is_there() -> None:
    """Names of commands, wherever a message or a page quotes one."""
    found = []
    for path in [*(ROOT / "services" / "penstock").rglob("*.py"), *pages()]:
        if "v1" in path.parts:
            continue
        found += [(path, words) for words in QUOTED.findall(path.read_text(encoding="utf-8"))]
    assert len(found) > 20
    wrong = [f"{path.relative_to(ROOT)}: penstock {w}" for path, w in found if not named(w)]
    assert [] == wrong


def pages() -> list[Path]:
    return [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def named(words: str) -> bool:
    """Whether they begin with a command or a group; `a | b`, `…`, a placeholder: any of them."""
    command: Command = get_command(app)
    for word in words.replace("\\[", "[").split():
        if not isinstance(command, TyperGroup) or not word.isidentifier():
            return True
        if word not in command.commands:
            return False
        command = command.commands[word]
    return True


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_the_commands_of_the_pages_are_parsed(path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for line in IN_A_BLOCK.findall("\n".join(blocks)):
        parsed(f"penstock {line.rstrip(')')}")
