"""`penstock pool`: accounts at providers."""

from typing import Annotated

import typer

from penstock.cli.account_tables import pools_table
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
    name: Annotated[str, typer.Argument(help="1 to 64 of a-z, 0-9 and -.")],
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help="Of penstock.yaml (again for more): all that belong to it. Default: stays."
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
    if there is None and not provider:
        raise CliError(
            f"there is no pool {own!r} yet: say --provider for each of its providers",
            code=BAD_USAGE,
        )
    request = admin_pb2.SetPoolRequest(
        name=there.name if there else own,
        providers=provider or (there.providers if there else ()),
        prepaid=prepaid if prepaid is not None else bool(there and there.prepaid),
    )
    made = await call.ask("SetPool", request, admin_pb2.Pool)
    return Shown(made, [pools_table([made])])


@operation(pool, "list", "penstock pool list")
async def list_pools(call: Call) -> Shown:
    """All pools and the providers that belong to them."""
    listed = await _pools(call)
    return Shown(listed, [pools_table(listed.pools)])


async def _pools(call: Call) -> admin_pb2.ListPoolsResponse:
    return await call.ask("ListPools", admin_pb2.ListPoolsRequest(), admin_pb2.ListPoolsResponse)
