"""`penstock account`: organisations and teams."""

from typing import Annotated

import typer

from penstock.cli.account_tables import accounts_table
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import account
from penstock.cli.operation import Call, Shown, operation
from penstock.quota.v1 import admin_pb2

OWNERS = ("org", "team")

Named = Annotated[str, typer.Argument(help="org:NAME, team:ORG/NAME or an id.", metavar="ACCOUNT")]
Prepaid = Annotated[
    bool | None,
    typer.Option("--prepaid/--payg", help="Nothing beyond its grants; or what its budgets allow."),
]
Commercial = Annotated[
    bool | None,
    typer.Option(
        "--commercial/--non-commercial", help="Commercial: it uses no non-commercial credit."
    ),
]


def _shown(one: admin_pb2.Account) -> Shown:
    return Shown(one, lambda known: [accounts_table([one], known)])


@operation(
    account,
    "create",
    "penstock account create acme",
    "penstock account create search --org acme --prepaid",
    "penstock account create team:acme/search",
    changes=True,
)
async def create(
    call: Call,
    name: Annotated[
        str,
        typer.Argument(
            help="1 to 64 of a-z, 0-9 and -; or org:NAME, team:ORG/NAME whole.", metavar="NAME"
        ),
    ],
    org: Annotated[
        str | None, typer.Option(help="Makes a team of this organisation; none: an organisation.")
    ] = None,
    prepaid: Prepaid = None,
    commercial: Commercial = None,
) -> Shown:
    """Make an organisation, or a team of one."""
    of, own = _placed(name, org)
    request = admin_pb2.CreateAccountRequest(
        kind=admin_pb2.Account.KIND_TEAM if of else admin_pb2.Account.KIND_ORG,
        name=own,
        org_id=await call.find_id(of, "org"),
        prepaid=bool(prepaid),
        commercial=bool(commercial),
    )
    return _shown(await call.ask("CreateAccount", request, admin_pb2.Account))


def _placed(name: str, org: str | None) -> tuple[str | None, str]:
    """The organisation that it lies in, and its own name.

    Raises:
        CliError: neither an organisation's name nor a team's.
    """
    kind, colon, path = name.partition(":")
    if not colon:
        return org, name
    of, slash, own = path.rpartition("/")
    if org is None and ((kind == "org" and not slash) or (kind == "team" and of)):
        return of or None, own
    raise CliError(
        f"NAME {name!r} is neither org:NAME nor team:ORG/NAME, nor a plain one with --org",
        remedy="A key is made by `penstock keys create`, a pool by `penstock pool set`.",
        code=BAD_USAGE,
    )


@operation(account, "list", "penstock account list", "penstock account list --json")
async def list_accounts(call: Call) -> Shown:
    """All organisations and teams."""
    listed = await _listed(call)
    return Shown(listed, lambda known: [accounts_table(listed.accounts, known)])


@operation(account, "show", "penstock account show team:acme/search")
async def show(call: Call, name: Named) -> Shown:
    """One organisation or team. What it may spend: `penstock ledger balance`."""
    found = await call.find(name, *OWNERS)
    listed = await _listed(call)
    return _shown(next(one for one in listed.accounts if one.id == found.id))


async def _listed(call: Call) -> admin_pb2.ListAccountsResponse:
    """Without pools, which have a group of their own."""
    request = admin_pb2.ListAccountsRequest()
    listed = await call.ask("ListAccounts", request, admin_pb2.ListAccountsResponse)
    own = [a for a in listed.accounts if a.kind != admin_pb2.Account.KIND_POOL]
    return admin_pb2.ListAccountsResponse(accounts=own)


@operation(
    account, "set", "penstock account set org:acme --prepaid --reason 'pays in advance'",
    changes=True,
)  # fmt: skip
async def change(
    call: Call, name: Named, prepaid: Prepaid = None, commercial: Commercial = None
) -> Shown:
    """Change how an organisation or team pays, and which grants it may use."""
    if prepaid is None and commercial is None:
        raise CliError(
            "say what to change: --prepaid, --payg, --commercial or --non-commercial",
            code=BAD_USAGE,
        )
    request = admin_pb2.UpdateAccountRequest(
        account_id=(await call.find(name, *OWNERS)).id, prepaid=prepaid, commercial=commercial
    )
    return _shown(await call.ask("UpdateAccount", request, admin_pb2.Account))


@operation(
    account, "suspend", "penstock account suspend org:acme --reason 'unpaid since March'",
    changes=True,
)  # fmt: skip
async def suspend(call: Call, name: Named) -> Shown:
    """Refuse every key of an organisation or team; routers hear of it within two seconds."""
    return await _set_suspended(call, name, suspended=True)


@operation(account, "resume", "penstock account resume org:acme", changes=True)
async def resume(call: Call, name: Named) -> Shown:
    """Let the keys of a suspended organisation or team spend again."""
    return await _set_suspended(call, name, suspended=False)


async def _set_suspended(call: Call, name: str, *, suspended: bool) -> Shown:
    request = admin_pb2.SetSuspendedRequest(
        account_id=(await call.find(name, *OWNERS)).id, suspended=suspended
    )
    return _shown(await call.ask("SetSuspended", request, admin_pb2.Account))
