"""The ledger's answers as tables. Money is exact decimal USD; nothing is rounded."""

from collections.abc import Sequence
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.table import Table
from rich.text import Text

from penstock.cli.names import Named, label
from penstock.core.money import format_usd
from penstock.quota.v1 import admin_pb2
from penstock.quota.v1.quota_pb2 import Principal


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def when(stamp: Timestamp) -> str:
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M UTC")


def keys_table(keys: Sequence[admin_pb2.Key], known: Sequence[Named]) -> Table:
    table = _table("key", "name", "team", "state", "may use", "expires", "starts with")
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
        )
    return table


def budgets_table(budgets: Sequence[admin_pb2.Budget], known: Sequence[Named]) -> Table:
    amounts = ("limit USD", "posted", "held", "suspense", "left")
    table = _table("budget", "of", "window", *amounts, "resets", right=amounts)
    for budget in budgets:
        used = budget.posted_nano_usd + budget.held_nano_usd + budget.suspense_nano_usd
        window = admin_pb2.Budget.Window.Name(budget.window).removeprefix("WINDOW_").lower()
        zone = f" ({budget.time_zone})" if window == "month" and budget.time_zone else ""
        table.add_row(
            Text(budget.name),
            label(known, budget.account_id),
            window + zone,
            "unlimited" if budget.unlimited else format_usd(budget.limit_nano_usd),
            format_usd(budget.posted_nano_usd),
            format_usd(budget.held_nano_usd),
            format_usd(budget.suspense_nano_usd),
            "" if budget.unlimited else format_usd(budget.limit_nano_usd - used),
            when(budget.resets_at) if budget.HasField("resets_at") else "never",
        )
    return table


def usage_table(rows: Sequence[admin_pb2.UsageRow], known: Sequence[Named]) -> Table:
    """A line for each key and model, and the sums."""
    numbers = ("attempts", "prompt", "completion", "posted USD", "nano-USD", "of it a bound")
    table = _table("key", "answered by", *numbers, right=numbers)
    for row in rows:
        table.add_row(
            label(known, row.key_id),
            Text(f"{row.provider}/{row.model}"),
            *_figures([row]),
        )
    table.add_section()
    for provider in sorted({row.provider for row in rows}):
        of_provider = [row for row in rows if row.provider == provider]
        if len(of_provider) < len(rows):
            table.add_row("", Text(f"{provider}, all"), *_figures(of_provider), style="dim")
    table.add_row("total", "", *_figures(rows), style="bold")
    return table


def _figures(rows: Sequence[admin_pb2.UsageRow]) -> list[str]:
    posted = sum(row.posted_nano_usd for row in rows)
    estimated = sum(row.estimated_nano_usd for row in rows)
    return [
        str(sum(row.attempts for row in rows)),
        str(sum(row.prompt_tokens for row in rows)),
        str(sum(row.completion_tokens for row in rows)),
        format_usd(posted),
        str(posted),
        format_usd(estimated) if estimated else "",
    ]
