"""`penstock ledger entries`: every movement of money and every change of the configuration."""

import json
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

from penstock.cli.app import out, print_table
from penstock.cli.as_json import as_dict
from penstock.cli.entry_table import detached_note, entries_table
from penstock.cli.groups import ledger
from penstock.cli.ledger_arguments import (
    PAGE_SIZE_DEFAULT,
    All,
    PageSize,
    PageToken,
    Since,
    Until,
    pages,
    span,
    tags,
)
from penstock.cli.operation import ACCOUNT_HELP, Call, operation
from penstock.quota.v1 import quota_pb2

OPERATIONS_HELP = (
    "reserve, extend, settle, void, expire, late_settle, count, adjust, resolve, grant, lapse or"
    " configure."
)


@operation(
    ledger,
    "entries",
    "penstock ledger entries --request req_0192",
    "penstock ledger entries --account team:acme/search --operation settle --since 2026-11-01",
    "penstock ledger entries --operation configure --all --json",
)
async def entries(
    call: Call,
    account: Annotated[str | None, typer.Option(help=f"On it and below it: {ACCOUNT_HELP}")] = None,
    key: Annotated[str | None, typer.Option(help="Of this key: name or id.")] = None,
    request: Annotated[str, typer.Option(help="Of one request: req_….")] = "",
    reservation: Annotated[str, typer.Option(help="Of one attempt: its id.")] = "",
    kind: Annotated[str, typer.Option("--operation", help=OPERATIONS_HELP)] = "",
    provider: Annotated[str, typer.Option(help="Of this provider, e.g. openai.")] = "",
    model: Annotated[str, typer.Option(help="Of this model, e.g. gpt-4o-mini.")] = "",
    user: Annotated[str, typer.Option(help="Of this end user.")] = "",
    tag: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE (again for more): with all of them.")
    ] = None,
    since: Since = None,
    until: Until = None,
    page_size: PageSize = PAGE_SIZE_DEFAULT,
    page_token: PageToken = "",
    every: All = False,
) -> None:
    """Movements of money and changes of the configuration, newest first.

    Filters that are given hold together. What a change was before and after: see --json.
    """
    first, last = span(since, until)
    wanted = quota_pb2.ListEntriesRequest(
        request_id=request,
        page_size=page_size,
        reservation_id=reservation,
        operation=kind,
        provider=provider,
        model=model,
        user=user,
        tags=tags(tag or ()),
        since=first,
        until=last,
    )
    wanted.key_id = await call.find_id(key, "key")
    wanted.account_id = await call.find_id(account)

    async def page(token: str) -> quota_pb2.ListEntriesResponse:
        wanted.page_token = token
        return await call.ask("ListEntries", wanted, quota_pb2.ListEntriesResponse)

    found = pages(page, page_token, every=every)
    await (_as_json if call.as_json else _as_tables)(call, found)


async def _as_tables(call: Call, found: AsyncIterator[quota_pb2.ListEntriesResponse]) -> None:
    """Each as it comes: there may be millions."""
    count, token, note = 0, "", ""
    async for answer in found:
        count, token = count + len(answer.entries), answer.next_page_token
        if answer.HasField("detached"):
            note = detached_note(answer.detached)
        if answer.entries:
            print_table(entries_table(answer.entries, await call.known()))
    if not count:
        out.print("no entry")
    elif token:
        out.print(f"there are more: --page-token {token}, or --all", style="dim")
    if note:
        out.print(note, style="yellow")


async def _as_json(_call: Call, found: AsyncIterator[quota_pb2.ListEntriesResponse]) -> None:
    """One document, written as it comes: there may be millions."""
    begin, token, detached = '{\n  "entries": [', "", None
    async for answer in found:
        token = answer.next_page_token
        if answer.HasField("detached"):
            detached = as_dict(answer.detached)
        for entry in answer.entries:
            sys.stdout.write(f"{begin}\n    {_line(as_dict(entry))}")
            begin = ","
        sys.stdout.flush()
    end = "\n  ]" if begin == "," else f"{begin}]"
    gone = "" if detached is None else f',\n  "detached": {_line(detached)}'
    sys.stdout.write(f'{end},\n  "next_page_token": {_line(token)}{gone}\n}}\n')


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
