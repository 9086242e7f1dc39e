"""`penstock keys`, `budget`, `usage`, `quota`: the operator's side of the ledger."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, TypeVar
from zoneinfo import available_timezones

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from rich.markup import escape
from rich.table import Table

from penstock.cli import admin, names, processes
from penstock.cli.admin import Admin
from penstock.cli.app import (
    Json,
    app,
    awaited,
    clear_faults,
    err,
    out,
    print_json,
    print_table,
    state_of,
)
from penstock.cli.child import readable
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.ledger_tables import budgets_table, keys_table, usage_table
from penstock.cli.state import State
from penstock.core.config import ConfigError, load
from penstock.core.errors import PenstockError
from penstock.core.money import parse_usd
from penstock.quota.audit import audit_dsn
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import Principal

T = TypeVar("T")

keys = typer.Typer(help="API keys.", no_args_is_help=True)
budget = typer.Typer(help="Budgets of organisations, teams and keys.", no_args_is_help=True)
quota = typer.Typer(help="The ledger's database.", no_args_is_help=True)
app.add_typer(keys, name="keys")
app.add_typer(budget, name="budget")
app.add_typer(quota, name="quota")

WINDOWS = {
    "total": admin_pb2.Budget.WINDOW_TOTAL,
    "month": admin_pb2.Budget.WINDOW_MONTH,
}


NEGATIVE_IS_NO_OPTION = {"ignore_unknown_options": True}
"""So that -1 is heard as a limit, and refused as one."""


async def asked(state: State, ask: Callable[[Admin], Awaitable[T]]) -> T:
    """What the ledger says; its refusal as a line."""
    where = admin.access(state)
    try:
        async with admin.opened(where) as found:
            return await ask(found)
    except PenstockError as error:
        raise admin.told(error, where.address) from None


def as_dict(message: Any) -> Any:
    """A message as JSON has it, with int64 as int: amounts stay numbers, and exact."""
    return _ints(
        MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    )


def _ints(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _ints(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_ints(v, name) for v in value]
    counted = name.endswith(("_usd", "_tokens", "_mtok", "_ms", "_max", "_seconds"))
    numeric = isinstance(value, str) and (counted or name == "attempts")
    return int(value) if numeric and value.removeprefix("-").isdecimal() else value


def moment(text: str | None, name: str) -> Timestamp | None:
    """An ISO 8601 date or time, UTC where it names no zone.

    Raises:
        CliError: it is none.
    """
    if text is None:
        return None
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise CliError(
            f"{name} {text!r} is no date or time; write e.g. 2026-11-01 or 2026-11-01T12:00Z",
            code=BAD_USAGE,
        ) from None
    stamp = Timestamp()
    stamp.FromDatetime(value if value.tzinfo else value.replace(tzinfo=UTC))
    return stamp


@keys.command("create")
@clear_faults
@awaited
async def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A name for people.")],
    team: Annotated[str, typer.Option(help="Its team: id or name.")] = "default",
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model, alias or pin it may use (again for more); none: all."),
    ] = None,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Never leaves our own replicas.")
    ] = False,
    fail_open_local: Annotated[
        bool,
        typer.Option("--fail-open-local", help="Local requests go on while the ledger is away."),
    ] = False,
    expires: Annotated[str | None, typer.Option(help="Date or time, e.g. 2027-01-01.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key. Its text is shown this once; only a hash is kept."""
    expires_at = moment(expires, "--expires")

    async def ask(found: Admin) -> Any:
        of = names.find(await names.directory(found), team, kinds=("team",))
        await demand_new_name(found, of, name)
        request = admin_pb2.CreateKeyRequest(
            team_id=of.id,
            name=name,
            allowed_models=model or [],
            local_only=local_only,
            fail_open_local=fail_open_local,
            expires_at=expires_at,
        )
        return await found.call("CreateKey", request)

    state = state_of(context)
    created = await asked(state, ask)
    _warn_of_unknown(state, model or ())
    if as_json:
        print_json(as_dict(created))
        return
    out.print(f"key {created.key.name} ({created.key.id}), shown this once:")
    out.print(f"[bold]{created.secret}[/]")
    out.print(
        "It spends only within a budget of its own, its team or its organisation: "
        f"penstock budget set 5.00 --account {created.key.id}"
    )


async def demand_new_name(found: Admin, team: names.Named, name: str) -> None:
    """Two active keys of one name could not be told apart by it."""
    listed: Any = await found.call("ListKeys", admin_pb2.ListKeysRequest(team_id=team.id))
    for key in listed.keys:
        if key.name == name and key.state == Principal.STATE_ACTIVE:
            raise CliError(
                f"{team.text} has an active key {name!r} already ({key.id})",
                remedy=f"Choose another name, or `penstock keys revoke {key.id}` first.",
            )


def _warn_of_unknown(state: State, models: Sequence[str]) -> None:
    """Of names (or patterns) that nothing in the configuration bears: allowed, for it may yet."""
    running = processes.load(state)
    if running is None:
        return
    try:
        catalogue = load(Path(running.options["config"]))
    except ConfigError:
        return
    known = [*catalogue.aliases, *catalogue.targets]
    for name in models:
        if not any(fnmatchcase(one, name) for one in known):
            err.print(f"  {escape(name)} is no model or alias of the configuration", style="yellow")


@keys.command("list")
@clear_faults
@awaited
async def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """All keys, with their state."""

    async def ask(found: Admin) -> Any:
        listed = await found.call("ListKeys", admin_pb2.ListKeysRequest())
        return listed, await names.directory(found)

    listed, known = await asked(state_of(context), ask)
    if as_json:
        print_json(as_dict(listed))
    else:
        print_table(keys_table(listed.keys, known))


@keys.command("revoke")
@clear_faults
@awaited
async def revoke_key(
    context: typer.Context,
    key: Annotated[str, typer.Argument(help="Id or name.")],
    as_json: Json = False,
) -> None:
    """Refuse a key from now on; routers hear of it within two seconds."""

    async def ask(found: Admin) -> Any:
        one = names.find(await names.directory(found), key, kinds=("key",))
        return await found.call("RevokeKey", admin_pb2.RevokeKeyRequest(key_id=one.id))

    revoked = await asked(state_of(context), ask)
    if as_json:
        print_json(as_dict(revoked))
    else:
        out.print(f"key {revoked.name} ({revoked.id}) is revoked")


@budget.command("set", context_settings=NEGATIVE_IS_NO_OPTION)
@clear_faults
@awaited
async def set_budget(
    context: typer.Context,
    limit: Annotated[str, typer.Argument(help="USD, e.g. 12.50; 0 stops; or [bold]unlimited[/].")],
    account: Annotated[
        str | None,
        typer.Option(help="org:NAME, team:NAME, key:NAME or an id; default: the ready-made key."),
    ] = None,
    window: Annotated[str, typer.Option(help="month (calendar) or total.")] = "month",
    name: Annotated[str, typer.Option(help="Named in refusals.")] = "",
    time_zone: Annotated[str, typer.Option(help="Of the calendar, e.g. Europe/Berlin.")] = "UTC",
    as_json: Json = False,
) -> None:
    """Make or change the budget of one account and window."""
    if window not in WINDOWS:
        raise CliError(f"--window {window!r} is neither month nor total", code=BAD_USAGE)
    if time_zone not in available_timezones() | {"UTC"}:
        raise CliError(
            f"--time-zone {time_zone!r} is not known; e.g. Europe/Berlin", code=BAD_USAGE
        )
    amount = _limit(limit)
    state = state_of(context)

    async def ask(found: Admin) -> Any:
        of = names.find(await names.directory(found), account or _ready_key(state))
        request = admin_pb2.SetBudgetRequest(
            account_id=of.id,
            window=WINDOWS[window],
            name=name or f"{of.name}-{window}",
            time_zone=time_zone,
        )
        if amount is None:
            request.unlimited = True
        else:
            request.limit_nano_usd = amount
        return await found.call("SetBudget", request), await names.directory(found)

    changed, known = await asked(state, ask)
    if as_json:
        print_json(as_dict(changed))
    else:
        print_table(budgets_table([changed], known))


def _limit(text: str) -> int | None:
    if text == "unlimited":
        return None
    if text.startswith("--"):
        raise CliError(f"there is no option {text}", code=BAD_USAGE)
    if text.startswith("-"):
        raise CliError(
            f"LIMIT: {text}: a limit cannot be negative; 0 stops all spending", code=BAD_USAGE
        )
    try:
        return parse_usd(text)
    except ValueError as error:
        raise CliError(f"LIMIT: {error}; or write unlimited", code=BAD_USAGE) from None


def _ready_key(state: State) -> str:
    found = admin.settings(state).get(admin.KEY_ID)
    if not found:
        raise CliError("no ready-made key is known here: say --account", code=BAD_USAGE)
    return found


@budget.command("list")
@clear_faults
@awaited
async def list_budgets(context: typer.Context, as_json: Json = False) -> None:
    """All budgets: limit, posted, held, in suspense, left, reset."""

    async def ask(found: Admin) -> Any:
        listed = await found.call("ListBudgets", admin_pb2.ListBudgetsRequest())
        return listed, await names.directory(found)

    listed, known = await asked(state_of(context), ask)
    if as_json:
        print_json(as_dict(listed))
    else:
        print_table(budgets_table(listed.budgets, known))


@app.command()
@clear_faults
@awaited
async def usage(
    context: typer.Context,
    account: Annotated[str | None, typer.Option(help="Only this org, team or key.")] = None,
    since: Annotated[str | None, typer.Option(help="E.g. 2026-11-01; default: ever.")] = None,
    until: Annotated[str | None, typer.Option(help="Default: now.")] = None,
    as_json: Json = False,
) -> None:
    """What was spent, by key, provider and model, exact to the nano-USD."""
    request = admin_pb2.GetUsageRequest(
        since=moment(since, "--since"), until=moment(until, "--until")
    )

    async def ask(found: Admin) -> Any:
        known = await names.directory(found)
        if account is not None:
            request.account_id = names.find(known, account).id
        return await found.call("GetUsage", request), known

    report, known = await asked(state_of(context), ask)
    if as_json:
        total = sum(row.posted_nano_usd for row in report.rows)
        print_json({**as_dict(report), "total_posted_nano_usd": total})
        return
    print_table(usage_table(report.rows, known))


@quota.command()
@clear_faults
def migrate(context: typer.Context, as_json: Json = False) -> None:
    """Bring the ledger's schema forward (advisory-locked; never back)."""
    command = [sys.executable, "-m", "penstock.quota", "migrate"]
    environment = {**os.environ, admin.QUOTA_DSN: _dsn(state_of(context))}
    result = subprocess.run(command, env=environment, capture_output=True, check=False)  # noqa: S603 - our own command
    words = result.stderr.decode(errors="replace").strip().splitlines()
    told = readable(words[-1]) if words else ""
    if result.returncode:
        raise CliError(told.removeprefix("error: ") or "the migration failed")
    if as_json:
        print_json({"ok": True, "message": told.removeprefix("info: ")})
    else:
        out.print(told.removeprefix("info: "))


@quota.command()
@clear_faults
@awaited
async def audit(context: typer.Context, as_json: Json = False) -> None:
    """Recompute every balance from the entries, and name whatever differs. Changes nothing."""
    report = await audit_dsn(_dsn(state_of(context)))
    if as_json:
        checks = [{"name": c.name, "findings": list(c.findings)} for c in report.checks]
        figures = {n: getattr(report, n) for n in ("entries", "reservations", "buckets")}
        posted = report.posted_nano_usd
        print_json({"ok": report.ok, **figures, "posted_nano_usd": posted, "checks": checks})
    else:
        table = Table(box=None)
        for check in report.checks:
            mark = "[red]✗[/]" if check.findings else "[green]✓[/]"
            table.add_row(mark, check.name, "\n".join(check.findings))
        print_table(table)
        out.print(
            f"{report.entries} entries, {report.reservations} reservations, "
            f"{report.buckets} balances; {report.posted_nano_usd} nano-USD posted"
        )
    if not report.ok:
        raise CliError("the ledger does not add up: see above")


def _dsn(state: State) -> str:
    found = admin.settings(state).get(admin.QUOTA_DSN)
    if not found:
        raise CliError(
            "the ledger's database is not known here",
            remedy=f"Start Penstock with `make up`, or set {admin.QUOTA_DSN}.",
        )
    return found
