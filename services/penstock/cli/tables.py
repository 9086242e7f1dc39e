"""What all tables of the ledger's answers share."""

from collections.abc import Sequence
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.table import Table
from rich.text import Text

BAR_CELLS = 20


def plain(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """Columns of `right` hold numbers. No title: an empty text."""
    table = Table(
        box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold"
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def when(stamp: Timestamp) -> str:
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M UTC")


def when_exactly(stamp: Timestamp) -> str:
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")


def bar(spent: int, waiting: int, limit: int) -> Text:
    """How full it is, and the per cent: what is spent solid, what is held or in suspense shaded.

    Full only where nothing is left, and empty only where nothing is used.
    """
    used = spent + waiting
    solid, cells = _cells(spent, limit), _cells(used, limit)
    told = Text("█" * solid + "▒" * (cells - solid), style=_colour(used, limit))
    told.append("░" * (BAR_CELLS - cells), style="dim")
    return told.append(f" {used * 100 // limit if limit > 0 else 100:>3} %")


def _cells(amount: int, limit: int) -> int:
    if amount >= limit:
        return BAR_CELLS
    if amount <= 0:
        return 0
    return min(BAR_CELLS - 1, max(1, amount * BAR_CELLS // limit))


def _colour(used: int, limit: int) -> str:
    if used >= limit:
        return "red"
    return "yellow" if used * 100 >= limit * 80 else "green"  # the second of the default warnings
