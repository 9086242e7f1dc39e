"""`penstock pool`: accounts at providers."""

from typing import Annotated

import typer

from penstock.cli.account_tables import pools_table
from penstock.cli.catalogue_names import warn_of_providers
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.groups import pool
from penstock.cli.operation import Call, Shown, operation
from penstock.quota.v1 import admin_pb2


@operation(
    pool,
    "set",
    "penstock pool set openai --provider openai --provider openai-eu",
    "penstock pool set azure --provider azure --prepaid",
    changes=True,
)
async def change(
    call: Call,
    name: Annotated[str, typer.Argument(help="1 to 64 of a-z, 0-9 and -.", metavar="NAME")],
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Name in penstock.yaml (again for more): all that belong to it. Default: stays."
        ),
    ] = None,
    prepaid: Annotated[
        bool | None,
        typer.Option(
            "--prepaid/--payg",
            help="Nothing is sent beyond its credit (its grants); or it bills. Default: stays.",
        ),
    ] = None,
) -> Shown:
    """Make or change a pool: all credentials of one organisation at one provider.

    Its credit: `penstock grant create … --account pool:NAME`. Its limits: `penstock limit set
    pool:NAME …`. They are shared, whichever of its providers is called.
    """
    own = name.removeprefix("pool:")
    there = next((p for p in (await _pools(call)).pools if own in {p.name, p.id}), None)
    if not provider and (there is None or there.closed):
        what = f"there is no pool {own!r} yet" if there is None else f"pool {own!r} is closed"
        raise CliError(f"{what}: say --provider for each of its providers", code=BAD_USAGE)
    request = admin_pb2.SetPoolRequest(
        name=there.name if there else own,
        providers=provider or (there.providers if there else ()),
        prepaid=prepaid if prepaid is not None else bool(there and there.prepaid),
    )
    made = await call.ask("SetPool", request, admin_pb2.Pool)
    warn_of_providers(call.state, provider)
    return Shown(made, [pools_table([made])])


@operation(
    pool,
    "list",
    "penstock pool list",
    "penstock pool list --closed --json",
)
async def list_pools(
    call: Call,
    closed: Annotated[bool, typer.Option("--closed", help="Closed ones too.")] = False,
) -> Shown:
    """Pools and the providers that belong to them."""
    found = [p for p in (await _pools(call)).pools if closed or not p.closed]
    return Shown(admin_pb2.ListPoolsResponse(pools=found), [pools_table(found)])


@operation(
    pool,
    "close",
    "penstock pool close pool:openai --reason 'the contract is over'",
    "penstock pool close openai --dry-run",
    changes=True,
)
async def close(
    call: Call,
    name: Annotated[str, typer.Argument(help="pool:NAME, NAME or its id.", metavar="POOL")],
) -> Shown:
    """Free its providers, for another pool or for none. `pool set` opens it again.

    Its credit, budgets, limits and entries stay, and apply to nothing meanwhile. It is refused
    (POOL_IN_USE, exit status 1) while an attempt in it runs or is in suspense: `penstock ledger
    entries --account pool:NAME` lists them, `penstock ledger resolve` or `reconcile` ends suspense.
    """
    request = admin_pb2.ClosePoolRequest(pool_id=(await call.find(name, "pool")).id)
    closed = await call.ask("ClosePool", request, admin_pb2.Pool)
    return Shown(closed, [pools_table([closed])])


async def _pools(call: Call) -> admin_pb2.ListPoolsResponse:
    return await call.ask("ListPools", admin_pb2.ListPoolsRequest(), admin_pb2.ListPoolsResponse)
