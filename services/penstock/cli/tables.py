"""What all tables of the ledger's answers share."""

import re
from collections.abc import Collection, Sequence
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

BAR_CELLS = 20

WIDTH_MAX = 1_000
"""Of anything that is printed."""

CLOSE = (0, 1, 0, 0)
"""Around a cell where room is wanted: a blank on its right, and what divides the columns."""

WORD_MAX = 12
"""Characters. A longer word may be broken, after a mark within it, to save a column."""

_PIECE = re.compile(r"[^\s/_,;-]*[\s/_,;-]*")
"""Of a name or a list: what a line may end with."""

_MICROSECONDS = re.compile(r"(?<=:[0-9]{2})\.[0-9]{6}(?= UTC)")
"""Of a moment: the first thing that a narrow terminal can do without."""

_WHOLE = re.compile(r"[0-9]+(?=\.|$)")
"""The digits of an amount or a number before its point; none of a per cent."""

_NOTHING = frozenset({"", "0", "0.00", "0 %"})


class Listed(Table):
    """Knows which of its columns a narrow terminal can do without, the first to go first.

    Text may break between words; an amount or a number never does.
    """

    drops: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    """Columns of ids, which are copied: they are never broken."""

    def without(self, dropped: Collection[str]) -> "Listed":
        """A copy that lacks these columns, and is set closer."""
        kept = [column for column in self.columns if column.header not in dropped]
        copy = plain(str(self.title or ""))
        copy.drops, copy.whole, copy.padding = self.drops, self.whole, CLOSE
        for column in kept:
            copy.add_column(
                column.header,
                justify=column.justify,
                overflow=column.overflow,
                no_wrap=column.no_wrap,
            )
        for row, cells in zip(self.rows, zip(*(c.cells for c in kept), strict=True), strict=True):
            brief = [_MICROSECONDS.sub("", c) if isinstance(c, str) else c for c in cells]
            copy.add_row(*brief, style=row.style, end_section=row.end_section)
        return copy


def plain(
    title: str,
    *columns: str,
    right: Sequence[str] = (),
    drops: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Listed:
    """Columns of `right` hold numbers, those of `whole` ids. No title: an empty text."""
    table = Listed(
        box=box.SIMPLE_HEAD, title=title or None, title_justify="left", title_style="bold"
    )
    table.drops, table.whole = tuple(drops), tuple(whole)
    for column in columns:
        number = column in right
        justify: JustifyMethod = "right" if number else "left"
        table.add_column(
            column, justify=justify, overflow="fold", no_wrap=number or column in whole
        )
    return table


def steady(table: Listed) -> Listed:
    """With room for what its figures may become, so that its columns stay while they change: each
    is a part of the first one, amounts to the nano, and per cents up to 100.
    """
    first, *parts = (column for column in table.columns if column.justify == "right")
    cells = (_WHOLE.match(str(cell)) for column in (first, *parts) for cell in column.cells)
    digits = max((len(whole[0]) for whole in cells if whole), default=0)
    for column in parts:
        column._cells = [_with_room(cell, digits) for cell in column.cells]  # noqa: SLF001
    return table


def _with_room(cell: RenderableType, digits: int) -> Text:
    text = cell if isinstance(cell, Text) else Text(str(cell))
    if "%" in text.plain:
        digits = len("100 %")
    elif "." in text.plain:
        digits += len(".000000001")
    text.pad_left(digits - len(text) if text else 0)
    return text


def fitted(table: Listed, console: Console, width: int) -> tuple[Listed, list[str]]:
    """With as many columns as a terminal so wide has room for, and the names of the others."""
    if widest(table, console) <= width:
        return table, []
    table = table.without([str(c.header) for c in table.columns if not any(map(str, c.cells))])
    drops = _in_order(table)
    dropped: list[str] = []
    found = table
    while narrowest(found, console) > width and drops:
        dropped.append(drops.pop(0))
        found = table.without(dropped)
    _share(found, max(0, width - _frame(found, console)))
    return found, dropped


def _in_order(table: Listed) -> list[str]:
    """Of its columns that may go: those without an amount in them first."""
    there = {str(c.header): c for c in table.columns}
    drops = [name for name in table.drops if name in there]
    zero = [n for n in drops if all(str(cell) in _NOTHING for cell in there[n].cells)]
    return [*zero, *(name for name in drops if name not in zero)]


def widest(table: Table, console: Console) -> int:
    """Its width where no line is broken."""
    unbounded = console.options.update(max_width=WIDTH_MAX)
    return Measurement.get(console, unbounded, table).maximum


def narrowest(table: Table, console: Console) -> int:
    """Its width where text is broken between words, and long ones where they can be."""
    return _frame(table, console) + sum(_width_min(column) for column in table.columns)


def _frame(table: Table, console: Console) -> int:
    """Of what lies between the columns."""
    return widest(table, console) - sum(_width_max(column) for column in table.columns)


def _share(table: Table, width: int) -> None:
    """Gives each column a width. rich itself breaks words of one where another has room."""
    widths = [_width_max(column) for column in table.columns]
    for least in (_word_max, _width_min):
        limits = [least(column) for column in table.columns]
        while sum(widths) > width and widths != limits:
            giving = [i for i, one in enumerate(widths) if one > limits[i]]
            widths[max(giving, key=lambda i: widths[i])] -= 1
    for column, column_width in zip(table.columns, widths, strict=True):
        column.width = column_width
        column._cells = [_broken(cell, column_width) for cell in column.cells]  # noqa: SLF001


def _broken(cell: RenderableType, width: int) -> RenderableType:
    """In lines of at most so many characters, each from a place where a word may begin."""
    text = cell if isinstance(cell, Text) else Text(str(cell))
    lines, began, ended = [], 0, 0
    for piece in _PIECE.finditer(text.plain):
        if cell_len(text.plain[began : piece.end()].rstrip()) > width and ended > began:
            lines.append(ended)
            began = ended
        ended = piece.end()
    parts = text.divide(lines)
    for part in parts:
        part.rstrip()
    return Text("\n").join(parts)


def _width_max(column: Column) -> int:
    return max(cell_len(str(cell)) for cell in (column.header, *column.cells))


def _word_max(column: Column) -> int:
    """The longest word; of a column of numbers all of it."""
    if column.no_wrap:
        return _width_max(column)
    cells = (str(cell) for cell in (column.header, *column.cells))
    return max((cell_len(word) for cell in cells for word in cell.split()), default=0)


def _width_min(column: Column) -> int:
    """The same, save that a long word may be broken."""
    if column.no_wrap:
        return _width_max(column)
    cells = (str(cell) for cell in (column.header, *column.cells))
    part = max((cell_len(x.strip()) for cell in cells for x in _PIECE.findall(cell)), default=0)
    return min(_word_max(column), max(WORD_MAX, part))


def when(stamp: Timestamp) -> str:
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M UTC")


def when_exactly(stamp: Timestamp) -> str:
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")


def bar(spent: int, waiting: int, limit: int) -> Text:
    """How full it is: what is spent solid, what is held or in suspense shaded.

    Full only where nothing is left, and empty only where nothing is used.
    """
    used = spent + waiting
    solid, cells = _cells(spent, limit), _cells(used, limit)
    told = Text("█" * solid + "▒" * (cells - solid), style=_colour(used, limit))
    return told.append("░" * (BAR_CELLS - cells), style="dim")


def per_cent(used: int, limit: int) -> Text:
    """100 only where nothing is left."""
    return Text(f"{used * 100 // limit if limit > 0 else 100} %", style=_colour(used, limit))


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
