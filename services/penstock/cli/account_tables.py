"""What operators set, as tables. Money is exact decimal USD; nothing is rounded."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from penstock.cli.limit_arguments import window_name
from penstock.cli.names import Named, label
from penstock.cli.tables import plain, when
from penstock.core.money import format_usd
from penstock.quota.v1 import admin_pb2, quota_pb2
from penstock.quota.v1.quota_pb2 import Principal


def accounts_table(accounts: Sequence[admin_pb2.Account], known: Sequence[Named]) -> Table:
    table = plain("", "account", "id", "state", "pays", "use", "made", drops=("made", "id", "use"))
    full = {one.id: one.full for one in known}
    for account in accounts:
        table.add_row(
            Text(full.get(account.id, account.name)),
            account.id,
            Text("suspended", "red") if account.suspended else Text("active", "green"),
            "from credit only" if account.prepaid else "within budgets",
            "commercial" if account.commercial else "any",
            when(account.created_at),
        )
    return table


def keys_table(keys: Sequence[admin_pb2.Key], known: Sequence[Named]) -> Table:
    columns = ("key", "name", "team", "state", "may use", "expires", "starts with", "texts")
    drops = ("texts", "starts with", "key", "expires")
    table = plain("", *columns, right=("texts",), drops=drops)
    for key in keys:
        state = Principal.State.Name(key.state).removeprefix("STATE_").lower()
        rules = ", ".join(key.allowed_models) or "all"
        table.add_row(
            key.id,
            Text(key.name),
            label(known, key.team_id),
            Text(state, style="green" if key.state == Principal.STATE_ACTIVE else "red"),
            Text(rules + (" (local only)" if key.local_only else "")),
            when(key.expires_at) if key.HasField("expires_at") else "never",
            Text(f"{key.prefix}…"),
            str(key.secrets),
        )
    return table


_CALENDAR = {
    admin_pb2.Budget.WINDOW_DAY,
    admin_pb2.Budget.WINDOW_WEEK,
    admin_pb2.Budget.WINDOW_MONTH,
}
"""Windows that lie elsewhere in another time zone."""


def budgets_table(budgets: Sequence[admin_pb2.Budget], known: Sequence[Named]) -> Table:
    amounts = ("limit USD", "posted", "held", "suspense", "left")
    state = _state(budgets)
    columns = ("budget", *state, "id", "of", "window", *amounts, "resets", "only for", "warns at")
    drops = ("warns at", "id", "resets", "posted", "window", "only for", "suspense", "held")
    table = plain("", *columns, right=amounts, drops=drops)
    for budget in budgets:
        used = budget.posted_nano_usd + budget.held_nano_usd + budget.suspense_nano_usd
        table.add_row(
            Text(budget.name),
            *(_open_or_closed(budget) for _ in state),
            budget.id,
            label(known, budget.account_id),
            _window(budget),
            "unlimited" if budget.unlimited else format_usd(budget.limit_nano_usd),
            format_usd(budget.posted_nano_usd),
            format_usd(budget.held_nano_usd),
            format_usd(budget.suspense_nano_usd),
            "" if budget.unlimited else format_usd(budget.limit_nano_usd - used),
            _resets(budget),
            Text(scope_text(budget.scope)),
            ", ".join(str(p) for p in budget.soft_percents) + " %",
        )
    return table


def limits_table(limits: Sequence[admin_pb2.RateLimit], known: Sequence[Named]) -> Table:
    numbers = ("limit", "used", "left")
    state = _state(limits)
    columns = ("rate limit", *state, "id", "of", "unit", "window", *numbers, "resets", "only for")
    drops = ("id", "used", "resets", "only for", "window")
    table = plain("", *columns, right=numbers, drops=drops)
    for limit in limits:
        unit = admin_pb2.RateLimit.Unit.Name(limit.unit).removeprefix("UNIT_").lower()
        table.add_row(
            Text(limit.name),
            *(_open_or_closed(limit) for _ in state),
            limit.id,
            label(known, limit.account_id),
            unit.replace("_", " "),
            "" if limit.unit == admin_pb2.RateLimit.UNIT_IN_FLIGHT else _window(limit),
            str(limit.limit),
            str(limit.used),
            str(limit.limit - limit.used),
            _resets(limit),
            Text(scope_text(limit.scope)),
        )
    return table


def grants_table(grants: Sequence[admin_pb2.Grant], known: Sequence[Named]) -> Table:
    amounts = ("amount USD", "posted", "held", "suspense", "lapsed", "left")
    columns = ("grant", "id", "key", "of", *amounts, "from", "until", "use", "only for")
    drops = (
        "id", "grant", "from", "use", "posted", "only for", "until", "suspense", "held", "lapsed",
    )  # fmt: skip
    table = plain("", *columns, right=amounts, drops=drops)
    for grant in grants:
        gone = (
            grant.posted_nano_usd,
            grant.held_nano_usd,
            grant.suspense_nano_usd,
            grant.lapsed_nano_usd,
        )
        table.add_row(
            Text(grant.name),
            grant.id,
            Text(grant.grant_key),
            label(known, grant.account_id),
            format_usd(grant.amount_nano_usd),
            *(format_usd(amount) for amount in gone),
            format_usd(grant.amount_nano_usd - sum(gone)),
            when(grant.starts_at),
            when(grant.expires_at) if grant.HasField("expires_at") else "for ever",
            "any" if grant.commercial_use else "not commercial",
            Text(scope_text(grant.scope)),
        )
    return table


def pools_table(pools: Sequence[admin_pb2.Pool]) -> Table:
    table = plain("", "pool", "id", "providers", "pays")
    for pool in pools:
        table.add_row(
            Text(pool.name),
            pool.id,
            Text("closed", "red") if pool.closed else Text(", ".join(pool.providers)),
            "from credit only" if pool.prepaid else "by bill",
        )
    return table


Scoped = admin_pb2.Scope | quota_pb2.GrantBalance | quota_pb2.BudgetBalance | quota_pb2.RateBalance


def scope_text(scope: Scoped) -> str:
    """Empty: everything."""
    words = [", ".join(scope.providers), ", ".join(scope.models)]
    words += [f"{name}={value}" for name, value in sorted(scope.tags.items())]
    return "; ".join(word for word in words if word)


Closable = admin_pb2.Budget | admin_pb2.RateLimit


def _state(settings: Sequence[Closable]) -> tuple[str, ...]:
    """Its column; none where all are open."""
    return ("state",) if any(one.closed for one in settings) else ()


def _open_or_closed(setting: Closable) -> Text:
    return Text("closed", "red") if setting.closed else Text("open", "green")


def _window(setting: Closable) -> str:
    name = window_name(setting.window)
    return f"{name} ({setting.time_zone})" if setting.window in _CALENDAR else name


def _resets(setting: Closable) -> str:
    if setting.closed:
        return ""
    return when(setting.resets_at) if setting.HasField("resets_at") else "never"
