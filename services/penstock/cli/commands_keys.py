"""`penstock keys`: API keys."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from penstock.cli import periods
from penstock.cli.account_tables import keys_table
from penstock.cli.catalogue_names import warn_of_allowed_models
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import keys
from penstock.cli.ledger_arguments import moment
from penstock.cli.names import Named
from penstock.cli.operation import Call, Shown, View, operation
from penstock.cli.tables import plain, when
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import Principal

Key = Annotated[str, typer.Argument(help="key:NAME, key:ORG/TEAM/NAME or an id.", metavar="KEY")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="An alias or pin that it may use: auto, openai/gpt-4o, 'local/*' (again for more).",
    ),
]
Expires = Annotated[
    str | None, typer.Option(help="When it ends: date or time, e.g. 2027-01-01 (UTC).")
]

OVERLAP_SECONDS_MAX = 30 * 86_400
"""As the contract has it."""


@operation(
    keys,
    "create",
    "penstock keys create ci",
    "penstock keys create ada --team acme/search --model 'local/*' --expires 2027-01-01",
    changes=True,
)
async def create(
    call: Call,
    name: Annotated[str, typer.Argument(help="1 to 128 characters, for people.", metavar="NAME")],
    team: Annotated[str, typer.Option(help="Its team: ORG/NAME, NAME or id.")] = "default",
    model: Models = None,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Never leaves our own replicas.")
    ] = False,
    fail_open_local: Annotated[
        bool,
        typer.Option("--fail-open-local", help="Local requests go on while the ledger is away."),
    ] = False,
    expires: Expires = None,
) -> Shown:
    """Make a key. Its text is shown this once; only a hash is kept.

    Without --model it may use all. Without --expires it never ends.
    """
    request = admin_pb2.CreateKeyRequest(
        name=name,
        allowed_models=model or [],
        local_only=local_only,
        fail_open_local=fail_open_local,
        expires_at=moment(expires, "--expires"),
    )
    of = await call.find(team, "team")
    await demand_new_name(call, of, name)
    request.team_id = of.id
    created = await call.ask("CreateKey", request, admin_pb2.CreateKeyResponse)
    warn_of_allowed_models(call.state, model or ())
    return _shown_once(
        created,
        "It spends only within a budget of its own, its team or its organisation: "
        f"penstock budget set 5.00 --account {created.key.id}",
    )


def _shown_once(created: admin_pb2.CreateKeyResponse, *then: View) -> Shown:
    key = f"key {created.key.name} ({created.key.id})"
    if not created.secret:  # a dry run makes none
        return Shown(created, [key, *then])
    return Shown(created, [f"{key}, shown this once:", created.secret, *then])


async def demand_new_name(call: Call, team: Named, name: str) -> None:
    """Two active keys of one name could not be told apart by it."""
    request = admin_pb2.ListKeysRequest(team_id=team.id)
    listed = await call.ask("ListKeys", request, admin_pb2.ListKeysResponse)
    for key in listed.keys:
        if key.name == name and key.state == Principal.STATE_ACTIVE:
            raise CliError(
                f"{team.text} has an active key {name!r} already ({key.id})",
                remedy=f"Choose another name, or `penstock keys revoke {key.id}` first.",
            )


@operation(keys, "list", "penstock keys list", "penstock keys list --team acme/search")
async def list_keys(
    call: Call,
    team: Annotated[str | None, typer.Option(help="Only its keys: ORG/NAME, NAME or id.")] = None,
) -> Shown:
    """All keys, with their state."""
    request = admin_pb2.ListKeysRequest(team_id=await call.find_id(team, "team"))
    listed = await call.ask("ListKeys", request, admin_pb2.ListKeysResponse)
    return Shown(listed, lambda known: [keys_table(listed.keys, known)])


@operation(keys, "revoke", "penstock keys revoke key:ci --reason 'found in a log'", changes=True)
async def revoke(call: Call, key: Key) -> Shown:
    """Refuse a key from now on, with all its texts; routers hear of it within two seconds."""
    request = admin_pb2.RevokeKeyRequest(key_id=(await call.find(key, "key")).id)
    revoked = await call.ask("RevokeKey", request, admin_pb2.Key)
    return Shown(revoked, [f"key {revoked.name} ({revoked.id}) is revoked"])


@operation(keys, "rotate", "penstock keys rotate key:ci --overlap 24h", changes=True)
async def rotate(
    call: Call,
    key: Key,
    overlap: Annotated[
        str, typer.Option(help="How long the texts before stay valid: 24h, 7d, 0; at most 30d.")
    ] = "24h",
) -> Shown:
    """Give a key a new text, shown this once. Its budgets, limits and spend stay.

    Then come its texts by their first characters, and when each ends; where a rotation before this
    one had told a later end, also that one.
    """
    overlap_seconds = periods.seconds(overlap, "--overlap")
    if overlap_seconds > OVERLAP_SECONDS_MAX:
        raise CliError(f"--overlap {overlap}: at most 30d", code=BAD_USAGE)
    request = admin_pb2.RotateKeyRequest(
        key_id=(await call.find(key, "key")).id, overlap_seconds=overlap_seconds
    )
    rotated = await call.ask("RotateKey", request, admin_pb2.CreateKeyResponse)
    return _shown_once(rotated, texts_table(rotated))


def texts_table(rotated: admin_pb2.CreateKeyResponse) -> Table:
    """When each text of the key ends, with the date: those before are to be replaced until then."""
    key = rotated.key
    table = plain("", "text", "made", "ends")
    new = f"{key.prefix}…" if rotated.secret else "the new one"  # a dry run makes none
    table.add_row(new, "now", when(key.expires_at) if key.HasField("expires_at") else "never")
    for text in rotated.before:
        ends = Text(when(text.valid_until))
        if text.valid_until.ToNanoseconds() < text.valid_until_before.ToNanoseconds():
            ends.append(f"\nsooner than {when(text.valid_until_before)}", "yellow")
        table.add_row(f"{text.prefix}…", when(text.created_at), ends)
    return table


@operation(
    keys,
    "update",
    "penstock keys update key:ci --model 'local/*' --local-only",
    "penstock keys update key:ci --all-models --never-expires",
    changes=True,
)
async def update(
    call: Call,
    key: Key,
    name: Annotated[str | None, typer.Option(help="A new name for people.")] = None,
    model: Models = None,
    all_models: Annotated[bool, typer.Option("--all-models", help="It may use all.")] = False,
    local_only: Annotated[
        bool | None,
        typer.Option(
            "--local-only/--any-provider", help="It never leaves our own replicas; or it may."
        ),
    ] = None,
    fail_open_local: Annotated[
        bool | None,
        typer.Option(
            "--fail-open-local/--fail-closed",
            help="Local requests go on while the ledger is away; or none do.",
        ),
    ] = None,
    expires: Expires = None,
    never_expires: Annotated[
        bool, typer.Option("--never-expires", help="Takes its end away.")
    ] = False,
) -> Shown:
    """Change what a key may do; what is not said stays. Routers hear of it within two seconds."""
    if model and all_models:
        raise CliError("say --model or --all-models, not both", code=BAD_USAGE)
    if expires is not None and never_expires:
        raise CliError("say --expires or --never-expires, not both", code=BAD_USAGE)
    request = admin_pb2.UpdateKeyRequest(
        name=name,
        local_only=local_only,
        fail_open_local=fail_open_local,
        expires_at=moment(expires, "--expires"),
        never_expires=never_expires,
    )
    if model or all_models:
        request.allowed_models.CopyFrom(admin_pb2.AllowedModels(patterns=model or ()))
    if request == admin_pb2.UpdateKeyRequest():
        raise CliError("say what to change: see --help", code=BAD_USAGE)
    of = await call.find(key, "key")
    request.key_id = of.id
    if name is not None and name != of.name:
        await demand_new_name(call, await call.find("/".join(of.path), "team"), name)
    changed = await call.ask("UpdateKey", request, admin_pb2.Key)
    warn_of_allowed_models(call.state, model or ())
    return Shown(changed, lambda known: [keys_table([changed], known)])


@operation(keys, "expire", "penstock keys expire key:ci --at 2027-01-01", changes=True)
async def expire(
    call: Call,
    key: Key,
    at: Annotated[
        str, typer.Option(help="Date or time, e.g. 2027-01-01; UTC where it names no zone.")
    ],
) -> Shown:
    """Say when a key ends. At once: `penstock keys revoke`."""
    request = admin_pb2.UpdateKeyRequest(expires_at=moment(at, "--at"))
    request.key_id = (await call.find(key, "key")).id
    changed = await call.ask("UpdateKey", request, admin_pb2.Key)
    return Shown(changed, lambda known: [keys_table([changed], known)])
