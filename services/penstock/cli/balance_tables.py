"""A balance as tables: budgets, prepaid credit, rate limits. Money is exact decimal USD."""

from collections.abc import Sequence

from rich.text import Text

from penstock.cli.account_tables import scope_text
from penstock.cli.names import Named, label
from penstock.cli.operation import View
from penstock.cli.tables import Listed, bar, per_cent, plain, steady, when
from penstock.core.money import format_usd
from penstock.quota.v1 import quota_pb2

BAR = "of the limit"

WAITING = ("suspense", "held")
"""Columns of what is neither spent nor free: they go last, save where they are all zero."""

WHY_NOT = {
    "not_started": "has not begun",
    "ended": "has ended",
    "used_up": "used up",
    "non_commercial": "not for commercial accounts",
}
"""By the contract's states."""


def balance_views(
    balance: quota_pb2.Balance,
    known: Sequence[Named],
    *,
    needs_budget: bool = True,
    watched: bool = False,
) -> list[View]:
    """What is there; a line where nothing is, which by default says what an attempt needs.

    `watched`: on a narrow terminal each table has the same columns whatever its figures are.
    """
    tables: list[Listed] = []
    if balance.budgets:
        tables.append(_budgets(balance.budgets, known, watched=watched))
    if balance.grants:
        tables.append(_grants(balance.grants, known))
    if balance.unusable_grants:
        tables.append(_unusable(balance.unusable_grants, known))
    if balance.rates:
        tables.append(_rates(balance.rates, known))
    if tables:
        return [steady(table) if watched else table for table in tables]
    needs = ": an attempt needs a budget of its key, team or organisation" if needs_budget else ""
    return [f"no budget, credit or rate limit of its own{needs}"]


def _waits(budget: quota_pb2.BudgetBalance) -> bool:
    return bool(budget.held_nano_usd or budget.suspense_nano_usd)


def _budgets(
    budgets: Sequence[quota_pb2.BudgetBalance], known: Sequence[Named], *, watched: bool
) -> Listed:
    amounts = ("limit USD", "posted", "held", "suspense", "left")
    numbers = (*amounts, "used")
    columns = ("budget", "of", "window", *numbers, BAR, "resets", "only for", "warns at")
    # Where money waits, how full it is can be told from it; where none does, it stays, and while it
    # is watched, for then some may wait now and none soon.
    used = ("used",) if not watched and any(_waits(b) for b in budgets) else ()
    drops = ("warns at", BAR, "resets", "posted", "window", "only for", *used, *WAITING)
    table = plain("Budgets", *columns, right=numbers, drops=drops)
    for budget in budgets:
        limited = budget.HasField("limit_nano_usd")
        waiting = budget.held_nano_usd + budget.suspense_nano_usd
        limit = budget.limit_nano_usd
        table.add_row(
            Text(budget.name),
            label(known, budget.account_id),
            budget.window,
            format_usd(limit) if limited else "unlimited",
            format_usd(budget.posted_nano_usd),
            format_usd(budget.held_nano_usd),
            format_usd(budget.suspense_nano_usd),
            format_usd(budget.remaining_nano_usd) if limited else "",
            per_cent(budget.posted_nano_usd + waiting, limit) if limited else "",
            bar(budget.posted_nano_usd, waiting, limit) if limited else "",
            when(budget.resets_at) if budget.HasField("resets_at") else "never",
            Text(scope_text(budget)),
            ", ".join(str(p) for p in budget.soft_percents) + " %" if limited else "",
        )
    return table


def _grants(grants: Sequence[quota_pb2.GrantBalance], known: Sequence[Named]) -> Listed:
    amounts = ("amount USD", "posted", "held", "suspense", "lapsed", "left")
    numbers = (*amounts, "used")
    columns = ("grant", "id", "of", *numbers, BAR, "from", "until", "only for")
    drops = (
        BAR, "id", "from", "used", "posted", "only for", "until", "suspense", "held", "lapsed",
    )  # fmt: skip
    title = "Credit, in the order in which it is used"
    table = plain(title, *columns, right=numbers, drops=drops)
    for grant in grants:
        spent = grant.posted_nano_usd + grant.lapsed_nano_usd
        waiting = grant.held_nano_usd + grant.suspense_nano_usd
        table.add_row(
            Text(grant.name),
            grant.grant_id,
            label(known, grant.account_id),
            format_usd(grant.amount_nano_usd),
            format_usd(grant.posted_nano_usd),
            format_usd(grant.held_nano_usd),
            format_usd(grant.suspense_nano_usd),
            format_usd(grant.lapsed_nano_usd),
            format_usd(grant.remaining_nano_usd),
            per_cent(spent + waiting, grant.amount_nano_usd),
            bar(spent, waiting, grant.amount_nano_usd),
            when(grant.starts_at),
            _until(grant),
            Text(scope_text(grant)),
        )
    return table


def _unusable(grants: Sequence[quota_pb2.GrantBalance], known: Sequence[Named]) -> Listed:
    """Credit that somebody may have counted on, and why it does not count."""
    amounts = ("amount USD", "posted", "lapsed", "left")
    columns = ("grant", "id", "of", "why not", *amounts, "from", "until", "only for")
    drops = ("id", "posted", "only for", "amount USD", "from", "lapsed")
    table = plain("Credit that does not apply now", *columns, right=amounts, drops=drops)
    for grant in grants:
        table.add_row(
            Text(grant.name),
            grant.grant_id,
            label(known, grant.account_id),
            Text(WHY_NOT.get(grant.state, grant.state), "yellow"),
            format_usd(grant.amount_nano_usd),
            format_usd(grant.posted_nano_usd),
            format_usd(grant.lapsed_nano_usd),
            format_usd(grant.remaining_nano_usd),
            when(grant.starts_at),
            _until(grant),
            Text(scope_text(grant)),
        )
    return table


def _until(grant: quota_pb2.GrantBalance) -> str:
    return when(grant.expires_at) if grant.HasField("expires_at") else "for ever"


def _rates(rates: Sequence[quota_pb2.RateBalance], known: Sequence[Named]) -> Listed:
    numbers = ("limit", "used", "left")
    figures = (*numbers, "full")
    columns = ("limit of", "name", "unit", "window", *figures, BAR, "resets", "only for")
    drops = (BAR, "used", "resets", "name", "only for")
    table = plain("Rate limits", *columns, right=figures, drops=drops)
    for rate in rates:
        table.add_row(
            label(known, rate.account_id),
            Text(rate.name),
            rate.unit.replace("_", " "),
            "" if rate.unit == "in_flight" else rate.window,
            str(rate.limit),
            str(rate.used),
            str(rate.limit - rate.used),
            per_cent(rate.used, rate.limit),
            bar(rate.used, 0, rate.limit),
            when(rate.resets_at) if rate.HasField("resets_at") else "",
            Text(scope_text(rate)),
        )
    return table
