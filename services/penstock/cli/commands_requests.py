"""`penstock models`, `explain`, `chat`: what a client of the router sees."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape

from penstock.cli import admin, refusals
from penstock.cli.app import (
    Json,
    app,
    awaited,
    clear_faults,
    examples,
    has_width,
    out,
    print_json,
    print_table,
    print_wide,
    state_of,
)
from penstock.cli.as_json import as_dict
from penstock.cli.chat import Chat, Settings
from penstock.cli.errors import BAD_USAGE, CliError
from penstock.cli.names import if_known
from penstock.cli.route_tables import models_table, plan_table, refusal_of, refusals_table
from penstock.cli.state import State
from penstock.cli.tables import WIDTH_MAX
from penstock.cli.wording import NO_NAMES, accounts_in
from penstock.client import Client, PenstockError, user

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


@app.command(epilog=examples("penstock models", "penstock models --json"))
@clear_faults
@awaited
async def models(context: typer.Context, key: Key = None, as_json: Json = False) -> None:
    """Models and aliases that the key may use, with prices."""
    async with client_of(state_of(context), key) as client:
        found = await client.models()
    if as_json:
        print_json([as_dict(model) for model in found])
        return
    print_table(models_table(found))


@app.command(
    epilog=examples(
        "penstock explain 'What is 7 times 8?'",
        "penstock explain 'Hello' --model openai/gpt-4o-mini --max-tokens 40 --json",
    )
)
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
    """The plan for a request: each attempt, why, its cost bound, and whether the ledger admits it.
    Nothing is spent or sent.
    """
    options: dict[str, Any] = {"local_only": local_only}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    state = state_of(context)
    async with client_of(state, key) as client:
        plan = await client.explain(model, [user(prompt)], **options)
    if as_json:
        print_json(as_dict(plan))
        return
    print_table(plan_table(plan))
    if refused := [(n, e) for n, a in enumerate(plan.attempts, 1) if (e := refusal_of(a))]:
        named = any(accounts_in(error.message) for _, error in refused)
        names = await if_known(state) if named else NO_NAMES
        told = [(n, refusals.told(error, "the router's address", names)) for n, error in refused]
        _print_text(refusals_table(told))
    if plan.cached:
        _print_text("an exact answer lies in the cache: cost 0")
    baseline = plan.baseline_model or "none"
    # Without an attempt nothing bounds it.
    bound = f"prompt: at most {plan.prompt_tokens_max} tokens; " if plan.attempts else ""
    _print_text(f"{bound}baseline: {escape(baseline)}")


def _print_text(text: RenderableType) -> None:
    """Broken between words where a person reads it."""
    print_wide(text, 0 if has_width() else WIDTH_MAX)


@app.command(
    epilog=examples(
        "penstock chat", "penstock chat 'What is 7 times 8?' --model local/smollm2-135m --json"
    )
)
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
