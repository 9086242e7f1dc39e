"""What `up` prints must neither fail nor hold it up."""

import asyncio
import os
import pty
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from penstock.cli.outlet import PIECES_MAX, enduring, on_hangup


@contextmanager
def console_on(descriptor: int) -> Iterator[Console]:
    with (
        os.fdopen(descriptor, "w", encoding="utf-8", closefd=False) as file,
        enduring(Console(file=file)) as console,
    ):
        yield console


def test_what_is_printed_arrives_in_order() -> None:
    reader, writer = os.pipe()
    with console_on(writer) as console:
        for line in ("Starting …", "ready"):
            console.print(line)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        assert "Starting …\nready\n" == pipe.read()


def test_a_pipe_whose_reader_has_ended_is_no_fault() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with console_on(writer) as console:
        console.print("Stopping")
    os.close(writer)


def test_a_terminal_that_was_closed_is_no_fault() -> None:
    master, slave = pty.openpty()
    with console_on(slave) as console:
        assert console.is_terminal
        os.close(master)
        console.print("Stopping")
    os.close(slave)


async def test_that_a_terminal_was_closed_is_told_though_nothing_is_printed() -> None:
    master, slave = pty.openpty()
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    on_hangup(slave, lambda: loop.call_soon_threadsafe(told.set))
    os.write(master, b"typed\n")
    os.close(master)
    async with asyncio.timeout(10):
        await told.wait()
    os.close(slave)


def test_a_reader_that_does_not_read_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    with console_on(writer) as console:
        for _ in range(2 * PIECES_MAX):
            console.print("x" * 1_000)
        # The writer hangs in the full pipe until here.
        os.close(reader)
    os.close(writer)
