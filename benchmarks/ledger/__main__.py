"""`make bench-ledger`: what the ledger does in a second, in one run, as a table.

.venv/bin/python -m benchmarks.ledger [--pairs 20000] [--entries 10000000] [--only …] [--write]
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from tests.support.postgres import server_in

from benchmarks.ledger.cases import CASES, Bench
from benchmarks.ledger.figures import Figure, load_average, machine, markdown

PAGE = Path(__file__).parents[2] / "docs" / "bench-ledger.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-ledger", description=__doc__)
    parser.add_argument("--pairs", type=int, default=20_000, help="of each measurement")
    parser.add_argument("--accounts", type=int, default=100_000, help="of the filled ledger")
    parser.add_argument("--entries", type=int, default=1_000_000, help="of it; e.g. 10000000")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--write", action="store_true", help=f"also writes docs/{PAGE.name}")
    options = parser.parse_args()
    load_before = load_average()
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder,
        server_in(Path(folder) / "postgres") as server,
        Progress(*columns, console=console) as progress,
    ):
        bench = Bench(server, Path(folder), options.pairs, options.accounts, options.entries)
        figures: list[Figure] = []
        for name in CASES:
            if name not in options.only:
                continue
            task = progress.add_task(CASES[name].title, total=1)
            figures += asyncio.run(CASES[name].measure(bench))
            progress.advance(task)
    _show(figures, load_before)
    if options.write:
        arguments = " ".join(sys.argv[1:])
        PAGE.write_text(markdown(figures, f" ARGS='{arguments}'", load_before))
    return 0 if all(figure.ok is not False for figure in figures) else 1


def _show(figures: list[Figure], load_before: str) -> None:
    title = f"{machine()}; load average before: {load_before}"
    table = Table("measured", "figure", "goal", "reached", title=title)
    for figure in figures:
        table.add_row(figure.name, figure.value, figure.goal, figure.verdict)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
