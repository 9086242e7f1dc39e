"""A list on a terminal that is too narrow for it."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from penstock.cli.tables import Listed, fitted, narrowest, plain, widest

CONSOLE = Console(file=io.StringIO(), width=1_000)


def filled() -> Listed:
    table = plain("", "name", "id", "why", "USD", right=("USD",), drops=("why", "id"))
    table.add_row("a-very-long-name/of-a-team", "budget_1", "", "1234567890.123456789")
    table.add_row("b", "budget_2", "because it is so", "1.00", style="bold")
    return table


def drawn(width: int) -> tuple[list[str], list[str]]:
    table, dropped = fitted(filled(), CONSOLE, width)
    console = Console(file=io.StringIO(), width=1_000)
    with console.capture() as said:
        console.print(table)
    return [line.rstrip() for line in said.get().splitlines()], dropped


def test_with_room_nothing_is_changed() -> None:
    table = filled()
    assert (table, []) == fitted(table, CONSOLE, widest(table, CONSOLE))


@pytest.mark.parametrize("width", [80, 70, 60, 50, 45, 40])
def test_it_fits_and_numbers_and_words_are_whole(width: int) -> None:
    lines, dropped = drawn(width)
    assert max(cell_len(line) for line in lines) <= width
    text = "\n".join(lines)
    assert "1234567890.123456789" in text
    assert {"because", "so"} <= set(text.split()) or "why" in dropped
    words = ("a-", "very-", "long-", "name/", "of-", "team")
    assert all(word in text for word in words)
    assert dropped == ["why", "id"][: len(dropped)]


def test_no_more_is_dropped_than_must_be() -> None:
    assert [[], ["why"], ["why", "id"]] == [drawn(width)[1] for width in (60, 50, 40)]


def test_a_column_that_says_nothing_is_the_first_to_go_and_is_not_missed() -> None:
    table = plain("", "name", "only for", "USD", right=("USD",), drops=("name",))
    table.add_row("twelve chars", "", "1.00")
    width = narrowest(table, CONSOLE)
    found, dropped = fitted(table, CONSOLE, width - 5)
    assert (["name", "USD"], []) == ([str(c.header) for c in found.columns], dropped)


def test_what_is_all_zero_goes_before_what_is_not() -> None:
    numbers = ("used", "held", "suspense")
    table = plain("", "name", *numbers, right=numbers, drops=numbers)
    table.add_row("a-budget", "10 %", "0.00", "1.00")
    table.add_row("another", "20 %", "0.00", "0.00")
    width = narrowest(table, CONSOLE)
    assert ["held"] == fitted(table, CONSOLE, width - 8)[1]
    assert ["held", "used"] == fitted(table, CONSOLE, width - 16)[1]


def test_an_id_is_never_broken_and_a_moment_loses_its_microseconds() -> None:
    table = plain("", "at", "request", "what", drops=("what",), whole=("request",))
    identity = "req_0192-aaaa-bbbb-cccc-0123456789ab"
    table.add_row("2026-11-24 19:38:12.123456 UTC", identity, "settled " * 10)
    found, dropped = fitted(table, CONSOLE, 66)
    console = Console(file=io.StringIO(), width=1_000)
    with console.capture() as said:
        console.print(found)
    assert ([], True) == (dropped, identity in said.get())
    assert ".123456" not in said.get()
    assert identity in str([str(cell) for cell in fitted(table, CONSOLE, 20)[0].columns[1].cells])


def test_where_even_the_last_columns_do_not_fit_it_is_wider_than_the_terminal() -> None:
    lines, dropped = drawn(10)
    assert ["why", "id"] == dropped
    assert any("1234567890.123456789" in line for line in lines)
