"""The groups of the operator's commands. A module of commands hangs its own on one of them.

A group's help is all that an operator needs to begin: what it is about, units, what comes before
and after, exit status, and where the ledger is looked for.
"""

import typer

from penstock.cli.app import app

_STATUS = (
    "Exit status: 0 done; 1 refused or failed; 2 a wrong argument or name; 130 Ctrl-C. What went"
    " wrong, and what to do about it, is told on standard error."
)
_WHERE = (
    "The ledger is that of the Penstock which `penstock up` started here (--state). For another"
    " one set PENSTOCK_QUOTA_ADMIN_ADDRESS and PENSTOCK_ADMIN_TOKEN."
)
_DATABASE = (
    "The database is that of the Penstock which `penstock up` started here (--state). For another"
    " one set PENSTOCK_QUOTA_DSN."
)
_ACCOUNTS = (
    "An account is written org:NAME, team:ORG/NAME, key:ORG/TEAM/NAME, pool:NAME or as its id; so"
    " much of it is enough as only one bears."
)


def _group(name: str, *paragraphs: str, where: str = _WHERE) -> typer.Typer:
    group = typer.Typer(
        help="\n\n".join(paragraphs), epilog=f"{_STATUS}\n\n{where}", no_args_is_help=True
    )
    app.add_typer(group, name=name)
    return group


account = _group(
    "account",
    "Organisations and teams: who spends.",
    "An organisation has teams, and a team has keys. First `penstock account create ORG`, then"
    " `penstock account create TEAM --org ORG`, then `penstock keys create` and `penstock budget"
    " set`: without a budget nothing is admitted.",
    _ACCOUNTS,
)
keys = _group(
    "keys",
    "API keys: make, rotate, change, revoke.",
    "A key belongs to a team. Its text (ps-…) is what a client sends; it is shown once, and only"
    " its hash is kept. It is refused until a budget of its own, its team or its organisation"
    " applies: `penstock budget set 5 --account key:NAME`. Its rate limits: `penstock limit set"
    " key:NAME`.",
    "Times are UTC where they name no zone: 2027-01-01, 2027-01-01T12:00+01:00.",
)
budget = _group(
    "budget",
    "Budgets in USD of organisations, teams, keys and pools.",
    "A request must fit into every budget of its key, its team, its organisation and its"
    " provider's pool, and one of the first three must apply. Amounts are decimal USD with up to"
    " nine places: 12.50.",
    "A window is a calendar one of its time zone: minute, hour, day, week (from Monday), month; or"
    " total, which never begins anew. At each soft per cent an alert is told (`penstock alerts"
    " list`); only the limit itself stops anybody.",
    _ACCOUNTS,
)
limit = _group(
    "limit",
    "Rate limits: requests, tokens, requests in flight.",
    "They are whole numbers a window (60/minute, 100000/day), or requests at one time (--in-flight"
    " 4), of an organisation, a team, a key or a pool. A pool's limit is waited for; any other"
    " refuses at once, and says when it frees up.",
    _ACCOUNTS,
)
grant = _group(
    "grant",
    "Prepaid credit, with a start and an end.",
    "So many USD for an organisation, a team, a key or a pool; for every provider and model or for"
    " some, for any use or (the default) for non-commercial use. It is used soonest-ending first;"
    " what is left at its end lapses. A prepaid account (`penstock account set ACCOUNT --prepaid`)"
    " spends its credit and nothing beyond.",
    "Credit that somebody earns is given the same way: --key makes it once only, however often it"
    " is asked for, and --reason says for what. `penstock ledger balance` tells which credit"
    " applies, and why the other does not.",
    _ACCOUNTS,
)
pool = _group(
    "pool",
    "Accounts at providers: whose credit and limits all their keys share.",
    "A provider of penstock.yaml is in one pool or in none. What is set for the pool holds for all"
    " of its providers and all of your keys together: `penstock grant create` (its credit),"
    " `penstock limit set` and `penstock budget set`, each with pool:NAME.",
)
ledger = _group(
    "ledger",
    "What was spent and what is left: balances, entries, corrections.",
    "Amounts are USD; --json has integers of a nano-USD. Posted is spent. Held is what running"
    " attempts may cost at most. In suspense is what abandoned paid attempts may have cost, until"
    " it is known. Left is the limit less all three.",
    _ACCOUNTS,
)
alerts = _group(
    "alerts",
    "What somebody should know of.",
    "Soft per cents of budgets that are passed, forecasts, overages, late settlements, old"
    " suspense, drift, credit that ends soon. Each is told once: listed here, and sent to the"
    " webhooks in PENSTOCK_ALERTS_WEBHOOKS of the quota processes (https://… or slack+https://…,"
    " separated by commas), signed with PENSTOCK_ALERTS_SECRET.",
)
quota = _group(
    "quota",
    "The ledger's database.",
    "`migrate` before each upgrade. `audit` daily: it changes nothing, and exits with 1 where"
    " anything differs. `seal` monthly, say; then `detach` and `prune` take away what is proven"
    " and old.",
    where=_DATABASE,
)
