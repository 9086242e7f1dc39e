"""The groups of the operator's commands. A module of commands hangs its own on one of them."""

import typer

from penstock.cli.app import app


def _group(name: str, text: str) -> typer.Typer:
    group = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(group, name=name)
    return group


account = _group("account", "Organisations and teams: who spends.")
keys = _group("keys", "API keys: make, rotate, change, revoke.")
budget = _group("budget", "Budgets in USD of organisations, teams, keys and pools.")
limit = _group("limit", "Rate limits: requests, tokens, requests in flight.")
grant = _group("grant", "Prepaid credit, with a start and an end.")
pool = _group("pool", "Accounts at providers: whose credit and limits all their keys share.")
ledger = _group("ledger", "What was spent and what is left: balances, entries, corrections.")
alerts = _group("alerts", "What somebody should know of.")
quota = _group("quota", "The ledger's database.")
