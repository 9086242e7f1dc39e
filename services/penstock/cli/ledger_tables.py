"""The ledger's use as a table. Money is exact decimal USD; nothing is rounded."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from penstock.cli.names import Named, label
from penstock.cli.tables import plain
from penstock.core.money import format_usd
from penstock.quota.v1 import admin_pb2


def usage_table(rows: Sequence[admin_pb2.UsageRow], known: Sequence[Named]) -> Table:
    """A line for each key and model, and the sums."""
    numbers = ("attempts", "prompt", "completion", "posted USD", "nano-USD", "of it a bound")
    drops = ("nano-USD", "completion", "prompt", "attempts", "of it a bound")
    table = plain("", "key", "answered by", *numbers, right=numbers, drops=drops)
    for row in rows:
        table.add_row(
            label(known, row.key_id or row.team_id or row.org_id),
            Text(f"{row.provider}/{row.model}" if row.provider else "adjustments"),
            *_figures([row]),
        )
    table.add_section()
    for provider in sorted({row.provider for row in rows}):
        of_provider = [row for row in rows if row.provider == provider]
        if len(of_provider) < len(rows):
            name = f"{provider}, all" if provider else "adjustments, all"
            table.add_row("", Text(name), *_figures(of_provider), style="dim")
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
