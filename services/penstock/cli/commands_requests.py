"""`penstock models`, `explain`, `chat`: what a client of the router sees."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from penstock.cli import admin, refusals
from penstock.cli.app import (
    Json,
    app,
    awaited,
    clear_faults,
    out,
    print_json,
    print_table,
    state_of,
)
from penstock.cli.as_json import as_dict
from penstock.cli.chat import Chat, Settings
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.names import if_known
from penstock.cli.state import State
from penstock.cli.wording import NO_NAMES, accounts_in
from penstock.client import Client, PenstockError, user
from penstock.core.money import format_usd
from penstock.router.v1 import router_pb2

TIMEOUT_SECONDS = 30.0


@asynccontextmanager
async def client_of(state: State, key: str | None) -> AsyncIterator[Client]:
    """The router's client, with the environment's settings or those of `penstock up`."""
    found = admin.settings(state)
    address = found.get("PENSTOCK_GRPC")
    secret = key or found.get("PENSTOCK_API_KEY")
    if not address or not secret:
        raise CliError(
            f"no router is known here: {state.env} is not there",
            remedy="Start Penstock with `make up`, or set PENSTOCK_GRPC and PENSTOCK_API_KEY.",
        )
    try:
        async with Client(address, secret, timeout_seconds=TIMEOUT_SECONDS) as client:
            yield client
    except PenstockError as error:
        names = await if_known(state) if accounts_in(error.message) else NO_NAMES
        raise refusals.told(error, address, names) from None


Key = Annotated[str | None, typer.Option("--key", help="Another API key than the ready-made one.")]


@app.command()
@clear_faults
@awaited
async def models(context: typer.Context, key: Key = None, as_json: Json = False) -> None:
    """Models and aliases that the key may use, with prices."""
    async with client_of(state_of(context), key) as client:
        found = await client.models()
    if as_json:
        print_json([as_dict(model) for model in found])
        return
    numbers = ("context", "output", "USD/Mtok in", "out", "ready")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("model", "kind", *numbers, "answered by"):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for model in found:
        table.add_row(
            model.id,
            router_pb2.Model.Kind.Name(model.kind).removeprefix("KIND_").lower(),
            str(model.context_tokens or ""),
            str(model.max_output_tokens or ""),
            _price(model, "input_nano_usd_per_mtok"),
            _price(model, "output_nano_usd_per_mtok"),
            str(model.ready_replicas) if model.HasField("ready_replicas") else "",
            ", ".join(model.targets),
        )
    print_table(table)


def _price(model: router_pb2.Model, field: Any) -> str:
    return format_usd(getattr(model, field)) if model.HasField(field) else ""


@app.command()
@clear_faults
@awaited
async def explain(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What would be asked.")],
    model: Annotated[str, typer.Option(help="Alias, or pinned: local/…, openai/….")] = "auto",
    max_tokens: Annotated[int | None, typer.Option(help="Of the answer.")] = None,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="As of the data class local-only.")
    ] = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """The plan for a request: each attempt, why, its cost bound. Nothing is spent or sent."""
    options: dict[str, Any] = {"local_only": local_only}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    async with client_of(state_of(context), key) as client:
        plan = await client.explain(model, [user(prompt)], **options)
    if as_json:
        print_json(as_dict(plan))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "answered by", "why", "cost at most, USD", "expected wait", "max tokens"):
        table.add_column(column, overflow="fold")
    for number, attempt in enumerate(plan.attempts, 1):
        table.add_row(
            str(number),
            f"{attempt.provider}/{attempt.model}",
            attempt.reason,
            format_usd(attempt.cost_bound_nano_usd),
            f"{attempt.expected_wait_ms} ms",
            str(attempt.max_tokens),
        )
    for rejected in plan.rejected:
        table.add_row("—", Text(f"{rejected.provider}/{rejected.model}", "dim"), rejected.reason)
    print_table(table)
    cached = "an exact answer lies in the cache: cost 0; " if plan.cached else ""
    out.print(
        f"{cached}prompt: at most {plan.prompt_tokens_max} tokens; "
        f"baseline: {plan.baseline_model or 'none'}"
    )


@app.command()
@clear_faults
@awaited
async def chat(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="One question; without it, a conversation.")
    ] = None,
    model: Annotated[str, typer.Option(help="Alias, or pinned: local/…, openai/….")] = "auto",
    system: Annotated[str, typer.Option(help="A system message.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Of each answer.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="0 is reproducible.")] = None,
    local_only: Annotated[
        bool, typer.Option("--local-only", help="Never to a paid provider.")
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="No stored answer.")] = False,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Talk to it: the answer as it is made, then its route and cost."""
    if as_json and prompt is None:
        raise CliError("--json needs PROMPT", code=BAD_USAGE)
    settings = Settings(
        model=model,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        local_only=local_only,
        no_cache=no_cache,
    )
    state = state_of(context)
    async with client_of(state, key) as client:
        talk = Chat(client, settings, out, lambda: if_known(state))
        if as_json:
            reply = await talk.answer(prompt or "", quiet=True)
            print_json({"text": reply.text, "receipt": as_dict(reply.receipt),
                        "usage": as_dict(reply.usage)})  # fmt: skip
        elif prompt is not None:
            await talk.answer_once(prompt)
        else:
            await talk.converse()
